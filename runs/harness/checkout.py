"""Brings the pinned commit of a recipe here, with nothing of the credential left in what the recipe's code sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from runs.harness.git import CheckoutError, Git, local_path
from runs.harness.protocol import Source

_SHA = re.compile(r"[0-9a-f]{40}")
_MOST_FILES = 50_000


class Checkout:
    """One checkout. `check` is called while git works, and raises when the run shall stop."""

    def __init__(
        self,
        source: Source,
        target: Path,
        credential: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
        disk_mb: int = 2048,
    ) -> None:
        self._source = source
        self._target = target
        self._git = Git(target, source.url, credential, check, disk_mb)

    def make(self) -> str:
        """Fill the target folder. Gives the commit's 40 digits; empty for a working tree that is no commit."""
        self._target.mkdir(parents=True)
        self._target.chmod(0o755)  # the sandbox reads it with another uid, whatever our umask is
        if not self._source.sha:
            if self._git.local is None:
                raise CheckoutError("A clone URL needs the commit that shall be tested.")
            sha = self._copy_working_tree(self._git.local)
            _let_read(self._target)
            return sha
        if not _SHA.fullmatch(self._source.sha):
            raise CheckoutError(f"{self._source.sha[:60]!r} is no full commit id of 40 hex digits.")
        if self._source.ref.startswith("-") or ("://" not in self._source.url and self._git.local is None):
            raise CheckoutError("The source is neither a URL nor a folder here.")
        self._fetch()
        self._refuse_bombs()
        self._git.run("checkout", "--quiet", "--detach", self._source.sha)
        if (head := self._git.run("rev-parse", "HEAD").strip()) != self._source.sha:
            raise CheckoutError(f"Wanted commit {self._source.sha[:12]}, got {head[:12]}.")
        shutil.rmtree(self._target / ".git")
        return self._source.sha

    def tip(self, ref: str) -> str:
        """The commit that `ref` of the source points to now."""
        lines = self._git.run("ls-remote", "--", self._git.remote, ref, f"refs/tags/{ref}^{{}}").splitlines()
        found = {name: sha for sha, _, name in (line.partition("\t") for line in lines)}
        for name in (f"refs/tags/{ref}^{{}}", ref, f"refs/heads/{ref}", f"refs/tags/{ref}"):
            if name in found:
                return found[name]
        raise CheckoutError(f"{self._source.url} has no {ref}.")

    def _fetch(self) -> None:
        url, sha, ref = self._git.remote, self._source.sha, self._source.ref
        self._git.run("init", "--quiet")
        try:
            self._git.run("fetch", "--quiet", "--no-tags", "--depth=1", "--", url, sha)
        except CheckoutError:
            # Not every server hands out a commit by its id.
            if not ref:
                raise
            self._git.run("fetch", "--quiet", "--no-tags", "--", url, ref)
            try:
                self._git.run("cat-file", "-e", f"{sha}^{{commit}}")
            except CheckoutError as error:
                raise CheckoutError(f"{ref} does not contain the commit {sha[:12]} any more.") from error

    def _refuse_bombs(self) -> None:
        """A small commit may unfold into a huge tree: count before anything is written."""
        size = count = 0
        command = ["git", "-C", str(self._target), "ls-tree", "-r", "-l", "-z", self._source.sha]
        with subprocess.Popen(command, env=self._git.environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout
            rest = b""
            while block := process.stdout.read(1 << 16):
                self._git.check()
                *entries, rest = (rest + block).split(b"\0")
                for entry in entries:
                    count += 1
                    digits = entry.split(b"\t")[0].rpartition(b" ")[2]
                    size += int(digits) if digits.isdigit() else 0
                if count > _MOST_FILES or size > self._git.disk:
                    process.kill()
                    most = f"{_MOST_FILES} files or {self._git.disk >> 20} MB"
                    raise CheckoutError(f"The recipe is too big: more than {most}.", True)

    def _copy_working_tree(self, folder: Path) -> str:
        try:
            listed = self._git.run("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
        except CheckoutError:
            shutil.copytree(folder, self._target, symlinks=True, dirs_exist_ok=True, ignore=_no_git)
            return ""
        for name in filter(None, listed.split("\0")):
            source, target = folder / name, self._target / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        try:
            changed = self._git.run("status", "--porcelain", "--", ".", folder=folder).strip()
            return "" if changed else self._git.run("rev-parse", "HEAD", folder=folder).strip()
        except CheckoutError:  # no commit yet
            return ""


def _let_read(folder: Path) -> None:
    """Give files and folders the modes that git would give them: a working tree may be its owner's alone."""
    folder.chmod(0o755)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _no_git(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == ".git"]


def resolve(url: str, ref: str = "", sha: str = "") -> Source:
    """A source with its commit pinned: the tip of `ref` (or of the default branch of a URL) when no `sha` is given.

    A folder's path with neither stays the working tree as it is; a `file://` URL is cloned. Raises CheckoutError for what
    is not there.
    """
    local = local_path(url)
    if local is None and "://" not in url and not re.match(r"[^/]+@[^/]+:", url):
        raise CheckoutError(f"There is no folder {url}.")
    if sha and not _SHA.fullmatch(sha):
        raise CheckoutError(f"{sha!r} is no full commit id of 40 hex digits.")
    source = Source(url=str(local or url), ref=ref, sha=sha)
    if sha or (local and not ref and "://" not in url):
        return source
    found = Checkout(source, local or Path("/")).tip(ref or "HEAD")
    return source.model_copy(update={"sha": found, "ref": ref or "HEAD"})
