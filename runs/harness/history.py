"""A recipe's history around the pinned commit: published versions, the base branch, what a pull request changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infra.deployers.isolation import trees
from infra.git.runner import GitError, Stumbled
from infra.recipe_version import Unreadable, Version
from runs.harness.checkout import Checkout
from runs.harness.git import Git
from runs.harness.protocol import Source

#: Maximum number of reported changed paths.
MOST_PATHS = 1000


@dataclass(frozen=True)
class Tag:
    """A tag of the base repository: a published version, if its name is a valid version."""

    name: str
    commit: str
    annotated: bool


class History:
    """The history of a run's repository, in a bare repository. Calls raise GitError.

    Tags come from the base repository only, because a fork's owner can create any tag there.
    """

    def __init__(
        self,
        source: Source,
        base: Source | None,
        folder: Path,
        credential: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
        disk_mb: int = 2048,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._source = source
        self._base = base
        self._folder = folder
        self._check = check
        self._disk = disk_mb
        self._git = Git(folder, (base or source).url, credential, check, disk_mb, report)
        self.unreadable: list[Tag] = []  #: tags that are not versions

    def fetch(self) -> bool:
        """Fetch it. Returns False if there is none, as for a folder without a repository."""
        local = self._git.local
        if not self._source.sha and (local is None or not _is_repository(self._git, local)):
            return False
        self._folder.mkdir(parents=True, mode=0o700)
        self._git.run("init", "--quiet", "--bare")
        wanted = [
            "+refs/tags/*:refs/tags/*",
            f"+{self._base.ref or 'HEAD'}:refs/cc-ci/base" if self._base else "+HEAD:refs/cc-ci/base",
        ]
        self._git.fetch(*wanted)
        if sha := self._source.sha:
            try:
                self._git.fetch(f"+{sha}:refs/cc-ci/run")
            except Stumbled:
                raise
            except GitError:
                if not self._source.ref:
                    raise
                self._git.fetch(f"+{self._source.ref}:refs/cc-ci/run")
        return True

    @cached_property
    def base(self) -> str:
        """The commit at the tip of the base branch (for a local folder: its newest commit)."""
        return self._git.run("rev-parse", "refs/cc-ci/base^{commit}").strip()

    @cached_property
    def tags(self) -> list[Tag]:
        """The published versions on the base branch, highest first."""
        form = "%(refname:strip=2)%00%(objecttype)%00%(objectname)%00%(*objectname)"
        merged = self._git.run("for-each-ref", f"--format={form}", f"--merged={self.base}", "refs/tags")
        found: list[tuple[Version, Tag]] = []
        for line in merged.splitlines():
            name, kind, own, behind = line.split("\0")
            tag = Tag(name, behind or own, kind == "tag")
            try:
                found.append((Version.parse(name), tag))
            except Unreadable:
                self.unreadable.append(tag)
        return [tag for _, tag in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def tag_of(self, commit: str) -> Tag | None:
        """The version that this commit was published as, if any; else a tag such as `v1.0.3`, which was meant to be one."""
        tags = [*self.tags, *(tag for tag in self.unreadable if re.fullmatch(r"v?\d+(\.\d+)+([+-].*)?", tag.name))]
        return next((tag for tag in tags if tag.commit == commit), None)

    def previous(self, commit: str, name: str = "") -> Tag | None:
        """The version to upgrade from: `name`, else the highest, which users of the recipe have now."""
        return next((tag for tag in self.tags if tag.commit != commit and name in ("", tag.name)), None)

    def changed(self) -> list[str]:
        """The paths changed by the pinned commit since it left the base branch; at most MOST_PATHS."""
        if not self._source.sha or not self._base:
            return []
        try:
            paths = self._git.run("diff", "--name-only", "--no-renames", "-z", f"{self.base}...{self._source.sha}")
        except GitError:  # unrelated histories
            paths = self._git.run("ls-tree", "-r", "-z", "--name-only", self._source.sha)
        return [path for path in paths.split("\0") if path][:MOST_PATHS]

    def file(self, commit: str, path: str, most: int = 1 << 20) -> bytes | None:
        """A file at a commit; None if it does not exist there, or is larger than `most` bytes."""
        try:
            if int(self._git.run("cat-file", "-s", f"{commit}:{path}")) > most:
                return None
            return self._git.run("cat-file", "blob", f"{commit}:{path}").encode(errors="surrogateescape")
        except GitError:
            return None

    def export(self, commit: str, target: Path) -> None:
        """Check out another commit, without history."""
        try:
            self._git.run("cat-file", "-e", f"{commit}^{{commit}}")
        except GitError:  # a quick run's may be on another branch than the base
            self._git.fetch(commit, depth=1)
        Checkout(Source(url=str(self._folder), sha=commit), target, None, self._check, self._disk).make()

    def remove(self) -> None:
        trees.remove(self._folder)


def _is_repository(git: Git, folder: Path) -> bool:
    try:
        git.run("rev-parse", "--verify", "HEAD^{commit}", folder=folder)
        return (Path(git.run("rev-parse", "--show-toplevel", folder=folder).strip()).resolve()) == folder.resolve()
    except GitError:
        return False
