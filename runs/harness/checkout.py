"""Brings the pinned commit of a recipe here, with nothing of the credential left in what the recipe's code sees."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from infra.deployers import trees
from runs.harness.git import CheckoutError, Git, local_path
from runs.harness.protocol import Source

_SHA = re.compile(r"[0-9a-f]{40}")
_OVER_SSH = re.compile(r"[^/@]+@[^/:]+:")
_MOST_FILES = 50_000
#: Levels of folders: what walks through a checkout calls itself for each.
_DEEPEST = 50
#: Bytes of a path; of one name in it, and of what a symlink points to: what is longer, the machine takes for an error of ours.
_LONGEST, _LONGEST_NAME = 1000, 255
#: For a forge to say where a branch is, while somebody waits at a terminal.
_TIP_SECONDS = 60.0


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
        self._set_attributes()
        self._git.run("checkout", "--quiet", "--detach", self._source.sha)
        if (head := self._git.run("rev-parse", "HEAD").strip()) != self._source.sha:
            raise CheckoutError(f"Wanted commit {self._source.sha[:12]}, got {head[:12]}.")
        if not trees.remove(self._target / ".git"):
            raise CheckoutError(f"{self._target / '.git'} could not be removed.")
        return self._source.sha

    def tip(self, ref: str) -> str:
        """The commit that `ref` of the source points to now."""
        wanted = (ref, f"refs/tags/{ref}^{{}}")
        listed = self._git.run("ls-remote", "--", self._git.remote, *wanted, seconds=_TIP_SECONDS)
        found = {name: sha for sha, _, name in (line.partition("\t") for line in listed.splitlines())}
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
        """A small commit may unfold into a huge tree: count before anything is written.

        Folders count as well (`-t`): a few of them, each a hundred times in the next, are as many as there are files in none.
        """
        most = f"{_MOST_FILES} files and folders, or {self._git.disk >> 20} MB"
        try:
            listed = self._git.run("ls-tree", "-r", "-t", "-l", "-z", self._source.sha)
        except CheckoutError as error:
            if error.recipes_fault:
                raise CheckoutError(f"The recipe is too big: more than {most}.", True) from error
            raise
        size = count = 0
        for entry in listed.split("\0"):
            count += 1
            about, _, name = entry.partition("\t")
            digits = about.rpartition(" ")[2]
            _refuse_name(name, int(digits) if about.startswith("120000") else 0)
            size += int(digits) if digits.isdigit() else 0
        if count > _MOST_FILES or size > self._git.disk:
            raise CheckoutError(f"The recipe is too big: more than {most}.", True)

    def _set_attributes(self) -> None:
        """Have git write each file as it is stored, for that is what was counted: what is said here goes above .gitattributes."""
        information = self._target / ".git" / "info"
        information.mkdir(exist_ok=True)
        (information / "attributes").write_text("* -text !eol !ident !filter !working-tree-encoding\n")

    def _copy_working_tree(self, folder: Path) -> str:
        try:
            listed = self._git.run("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
        except CheckoutError:
            self._copy(folder, _walk(folder))
            return ""
        self._copy(folder, filter(None, listed.split("\0")))
        # What is said in the folder's own .git is a stranger's, too, where the folder is: git would run its filters.
        try:
            named = self._git.run("config", "--null", "--name-only", "--get-regexp", r"^filter\.", folder=folder)
        except CheckoutError:  # none
            named = ""
        drivers = {name.rpartition(".")[0] for name in named.split("\0") if name}
        harmless = {"clean": "", "smudge": "", "process": "", "required": "false"}
        settings = {f"{driver}.{key}": value for driver in drivers for key, value in harmless.items()}
        try:
            command = ("status", "--porcelain", "--ignore-submodules=all", "--", ".")
            changed = self._git.run(*command, folder=folder, settings=settings).strip()
            return "" if changed else self._git.run("rev-parse", "HEAD", folder=folder).strip()
        except CheckoutError:  # no commit yet
            return ""

    def _copy(self, folder: Path, names: Iterable[str]) -> None:
        """Copy these files and symlinks of a folder, and nothing to which a symlink of it leads."""
        root, inner = folder.resolve(), {""}  # `inner`: the folders that are surely inside
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
                raise CheckoutError(f"The folder is too big: more than {_MOST_FILES} files or {self._git.disk >> 20} MB.", True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def _is_itself(folder: Path) -> bool:
    """Whether no part of the path is a symlink."""
    try:
        return folder.resolve() == folder
    except (OSError, RuntimeError):  # a loop
        return False


def _refuse_name(name: str, link: int = 0) -> None:
    """Raises CheckoutError for a path in a recipe that is more than a checkout can be asked to hold.

    `link` is the length of what it points to, where it is a symlink.
    """
    if name.count("/") > _DEEPEST:
        raise CheckoutError(f"The recipe has more than {_DEEPEST} levels of folders: {name[:80]!r}…", True)
    try:
        path = name.encode()
    except UnicodeEncodeError:
        told = name[-80:].encode(errors="replace").decode()
        raise CheckoutError(f"The recipe has a name that is not UTF-8: {told!r}. Rename it.", True) from None
    if len(path) > _LONGEST or max(link, *map(len, path.split(b"/"))) > _LONGEST_NAME:
        raise CheckoutError(
            f"The recipe has a path of more than {_LONGEST} bytes, or a name or a symlink in it of more than {_LONGEST_NAME}: "
            f"{name[:80]!r}…",
            True,
        )


def _walk(folder: Path) -> Iterator[str]:
    """The files and symlinks of a folder, but for git's own."""
    for place, folders, files in os.walk(folder):
        _refuse_name(os.path.relpath(place, folder))
        folders[:] = [name for name in folders if name != ".git"]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in (*files, *links))  # noqa: PTH118


def _let_read(folder: Path) -> None:
    """Give files and folders the modes that git would give them: a working tree may be its owner's alone."""
    folder.chmod(0o755)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def resolve(url: str, ref: str = "", sha: str = "") -> Source:
    """A source with its commit pinned: the tip of `ref` (or of the default branch of a URL) when no `sha` is given.

    A folder's path with neither stays the working tree as it is; a `file://` URL is cloned. Raises CheckoutError for what
    is not there.
    """
    local = local_path(url)
    if local is None and "://" not in url and not _OVER_SSH.match(url):
        raise CheckoutError(f"There is no folder {url}.")
    if sha and not _SHA.fullmatch(sha):
        raise CheckoutError(f"{sha!r} is no full commit id of 40 hex digits.")
    source = Source(url=str(local or url), ref=ref, sha=sha)
    if sha or (local and not ref and "://" not in url):
        return source
    found = Checkout(source, local or Path("/")).tip(ref or "HEAD")
    return source.model_copy(update={"sha": found, "ref": ref or "HEAD"})
