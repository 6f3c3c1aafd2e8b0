"""Checks out the pinned commit of a recipe, without leaving the credential where the recipe's code could see it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from infra.deployers.isolation import trees
from infra.git.runner import GitError, Stumbled
from runs.harness.git import Git, local_path
from runs.harness.protocol import Source

_SHA = re.compile(r"[0-9a-f]{40}")
_OVER_SSH = re.compile(r"[^/@]+@[^/:]+:")
_MOST_FILES = 50_000
#: Maximum depth of folders: code that walks a checkout recurses for each.
_DEEPEST = 50
#: Maximum bytes of a path; of one name in it, or a symlink's target. Longer ones would cause OS errors that look like ours.
_LONGEST, _LONGEST_NAME = 1000, 255
#: How long a forge may take to resolve a branch while somebody waits at a terminal.
_TIP_SECONDS = 60.0


class Checkout:
    """One checkout. `check` is called while git works, and raises if the run has to stop."""

    def __init__(
        self,
        source: Source,
        target: Path,
        credential: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
        disk_mb: int = 2048,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._source = source
        self._target = target
        self._git = Git(target, source.url, credential, check, disk_mb, report)

    def make(self) -> str:
        """Fill the target folder. Returns the commit's 40 digits; empty for an uncommitted working tree."""
        self._target.mkdir(parents=True)
        self._target.chmod(0o755)  # the sandbox reads it with another uid, whatever our umask is
        if not self._source.sha:
            if self._git.local is None:
                raise GitError("A clone URL requires the commit to test.")
            sha = self._copy_working_tree(self._git.local)
            _let_read(self._target)
            return sha
        if not _SHA.fullmatch(self._source.sha):
            raise GitError(f"Invalid commit id {self._source.sha[:60]!r}: expected 40 hex digits.")
        if self._source.ref.startswith("-") or ("://" not in self._source.url and self._git.local is None):
            raise GitError("The source is neither a URL nor a local folder.")
        self._fetch()
        self._refuse_bombs()
        self._set_attributes()
        self._git.run("checkout", "--quiet", "--detach", self._source.sha)
        if (head := self._git.run("rev-parse", "HEAD").strip()) != self._source.sha:
            raise GitError(f"Expected commit {self._source.sha[:12]}, got {head[:12]}.")
        if not trees.remove(self._target / ".git"):
            raise GitError(f"Could not remove {self._target / '.git'}.")
        return self._source.sha

    def tip(self, ref: str) -> str:
        """The commit that the source's `ref` points to now."""
        listed = self._git.ls_remote(ref, f"refs/tags/{ref}^{{}}", seconds=_TIP_SECONDS)
        found = {name: sha for sha, _, name in (line.partition("\t") for line in listed.splitlines())}
        for name in (f"refs/tags/{ref}^{{}}", ref, f"refs/heads/{ref}", f"refs/tags/{ref}"):
            if name in found:
                return found[name]
        raise GitError(f"{self._source.url} has no {ref}.")

    def _fetch(self) -> None:
        sha, ref = self._source.sha, self._source.ref
        self._git.run("init", "--quiet")
        try:
            self._git.fetch(sha, depth=1)
        except Stumbled:
            raise
        except GitError:
            # Not every server serves a commit by its id.
            if not ref:
                raise
            self._git.fetch(ref)
            try:
                self._git.run("cat-file", "-e", f"{sha}^{{commit}}")
            except GitError as error:
                raise GitError(f"{ref} no longer contains the commit {sha[:12]}.") from error

    def _refuse_bombs(self) -> None:
        """A small commit may unpack to a huge tree: count before anything is written.

        Counts folders too (`-t`): a few folders nested in each other hundreds of times make as many entries without any file.
        """
        most = f"{_MOST_FILES} files and folders, or {self._git.disk >> 20} MB"
        try:
            listed = self._git.run("ls-tree", "-r", "-t", "-l", "-z", self._source.sha)
        except GitError as error:
            if error.recipes_fault:
                raise GitError(f"The recipe is too big: more than {most}.", True) from error
            raise
        size = count = 0
        for entry in listed.split("\0"):
            count += 1
            about, _, name = entry.partition("\t")
            digits = about.rpartition(" ")[2]
            _refuse_name(name, int(digits) if about.startswith("120000") else 0)
            size += int(digits) if digits.isdigit() else 0
        if count > _MOST_FILES or size > self._git.disk:
            raise GitError(f"The recipe is too big: more than {most}.", True)

    def _set_attributes(self) -> None:
        """Have git write each file exactly as stored, because that is what was counted. This overrides .gitattributes."""
        information = self._target / ".git" / "info"
        information.mkdir(exist_ok=True)
        (information / "attributes").write_text("* -text !eol !ident !filter !working-tree-encoding\n")

    def _copy_working_tree(self, folder: Path) -> str:
        try:
            listed = self._git.run("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
        except GitError:
            self._copy(folder, _walk(folder))
            return ""
        self._copy(folder, filter(None, listed.split("\0")))
        # A stranger's folder has a stranger's .git configuration: git would run its filters.
        try:
            named = self._git.run("config", "--null", "--name-only", "--get-regexp", r"^filter\.", folder=folder)
        except GitError:  # none
            named = ""
        drivers = {name.rpartition(".")[0] for name in named.split("\0") if name}
        harmless = {"clean": "", "smudge": "", "process": "", "required": "false"}
        settings = {f"{driver}.{key}": value for driver in drivers for key, value in harmless.items()}
        try:
            command = ("status", "--porcelain", "--ignore-submodules=all", "--", ".")
            changed = self._git.run(*command, folder=folder, settings=settings).strip()
            return "" if changed else self._git.run("rev-parse", "HEAD", folder=folder).strip()
        except GitError:  # no commit yet
            return ""

    def _copy(self, folder: Path, names: Iterable[str]) -> None:
        """Copy these files and symlinks of a folder, without following symlinks."""
        root, inner = folder.resolve(), {""}  # `inner`: folders known to be inside
        size = 0
        for count, name in enumerate(names, 1):
            self._git.check()
            _refuse_name(name)
            above = os.path.dirname(name)  # noqa: PTH120
            if above not in inner:
                if not _is_itself(root / above):
                    continue
                inner.add(above)
            source, target = root / name, self._target / name
            link = source.is_symlink()
            if not link and not source.is_file():
                continue
            own = source.lstat().st_size
            if link:
                _refuse_name(name, own)
            size += own
            if count > _MOST_FILES or size > self._git.disk:
                raise GitError(f"The folder is too big: more than {_MOST_FILES} files or {self._git.disk >> 20} MB.", True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def _is_itself(folder: Path) -> bool:
    """Whether no part of the path is a symlink."""
    try:
        return folder.resolve() == folder
    except (OSError, RuntimeError):  # a loop
        return False


def _refuse_name(name: str, link: int = 0) -> None:
    """Raise GitError for a path in a recipe that is too long or too deep for a checkout.

    `link`: the length of the target, if it is a symlink.
    """
    if name.count("/") > _DEEPEST:
        raise GitError(f"The recipe has more than {_DEEPEST} levels of folders: {name[:80]!r}…", True)
    try:
        path = name.encode()
    except UnicodeEncodeError:
        message = name[-80:].encode(errors="replace").decode()
        raise GitError(f"The recipe has a name that is not UTF-8: {message!r}. Rename it.", True) from None
    if len(path) > _LONGEST or max(link, *map(len, path.split(b"/"))) > _LONGEST_NAME:
        raise GitError(
            f"The recipe has a path of more than {_LONGEST} bytes, or a name or symlink of more than {_LONGEST_NAME}: "
            f"{name[:80]!r}…",
            True,
        )


def _walk(folder: Path) -> Iterator[str]:
    """The files and symlinks of a folder, except git's own."""
    for place, folders, files in os.walk(folder):
        _refuse_name(os.path.relpath(place, folder))
        folders[:] = [name for name in folders if name != ".git"]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in (*files, *links))  # noqa: PTH118


def _let_read(folder: Path) -> None:
    """Give files and folders the modes that git would: a working tree may be readable by its owner only."""
    folder.chmod(0o755)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def resolve(url: str, ref: str = "", sha: str = "", credential: Mapping[str, str] | None = None) -> Source:
    """Pin a source's commit: the tip of `ref` (or of a URL's default branch) if no `sha` is given.

    A folder's path with neither remains the current working tree; a `file://` URL is cloned. Raises GitError for what
    does not exist.
    """
    local = local_path(url)
    if local is None and "://" not in url and not _OVER_SSH.match(url):
        raise GitError(f"There is no folder {url}.")
    if sha and not _SHA.fullmatch(sha):
        raise GitError(f"Invalid commit id {sha!r}: expected 40 hex digits.")
    source = Source(url=str(local or url), ref=ref, sha=sha)
    if sha or (local and not ref and "://" not in url):
        return source
    found = Checkout(source, local or Path("/"), credential).tip(ref or "HEAD")
    return source.model_copy(update={"sha": found, "ref": ref or "HEAD"})
