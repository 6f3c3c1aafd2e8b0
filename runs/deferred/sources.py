"""Where a `DEFERRED.md` is, how to read it, and how to write one ticked box back."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from enrollment.forge_access.clients import client_for, kind_of
from enrollment.forges.base import ForgeClient, NotFound, Rejected, RemoteFile
from enrollment.lookup import NotNamed, find_forge, find_repository
from enrollment.models import Repository
from runs.deferred.file_format import NAME, decode, plain

_BIGGEST = 4 << 20


class SourceError(Exception):
    """The file does not exist or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """One file: in an enrolled repository (`path` within its default branch), or on this machine (absolute `path`)."""

    path: str
    repository: Repository | None = None

    @property
    def name(self) -> str:
        """Its form in `DeferredItem.source`."""
        if self.repository is None:
            return self.path
        address = self.repository.html_url or f"{self.repository.forge.url}/{self.repository.full_name}"
        return f"{address}:{self.path}"

    @property
    def title(self) -> str:
        return f"{self.repository.full_name}:{self.path}" if self.repository else self.path


def find_source(typed: str, forge: str = "") -> Source:
    """The source that was typed: a file, a folder with a `DEFERRED.md`, or `OWNER/REPO` with `:PATH` if it is elsewhere.

    A local path takes precedence. Raises SourceError.
    """
    here = Path(typed).expanduser()
    if here.is_dir():
        here /= NAME
        if not here.is_file():
            raise SourceError(f"The folder {typed} has no {NAME}.")
    if here.is_file():
        return Source(str(here.resolve()))
    name, _, path = typed.partition(":")
    try:
        return Source(path.strip("/") or NAME, _repository(name, forge))
    except NotNamed as error:
        raise SourceError(f"There is no file or folder {typed} here, and no such enrolled repository: {error}") from error


def _repository(name: str, forge: str) -> Repository:
    if forge:
        return find_repository(name, find_forge(forge))
    owner, _, own = name.partition("/")
    rows = list(Repository.objects.select_related("forge").filter(owner__iexact=owner, name__iexact=own)[:2])
    if len(rows) == 1:
        return rows[0]
    return find_repository(name, find_forge(""))  # its error lists what there is


@dataclass(frozen=True)
class Read:
    """The file's content. `remote`: the forge's answer for a file of a repository."""

    data: bytes
    remote: RemoteFile | None = None


def read(source: Source, client: ForgeClient | None = None) -> Read:
    """The file's bytes. Raises SourceError, and ForgeError if the forge does not answer properly."""
    repository = source.repository
    if repository is None:
        try:
            if Path(source.path).stat().st_size > _BIGGEST:
                raise SourceError(f"{source.path} is larger than {_BIGGEST >> 20} MB: is this the right file?")
            return Read(Path(source.path).read_bytes())
        except OSError as error:
            raise SourceError(f"Cannot read {source.path}: {error.strerror}.") from error
    client = client or client_for(repository.forge)
    try:
        file = client.read_file(repository.owner, repository.name, source.path, repository.default_branch)
    except NotFound as error:
        raise SourceError(
            f"{repository.full_name} has no {source.path} on {repository.default_branch} that the token may see. Name a "
            f"file elsewhere as {repository.full_name}:PATH."
        ) from error
    return Read(file.content, file)


def patch(path: str, old: bytes, new: bytes) -> bytes:
    """The change as a unified diff for `git apply` and `patch -p1`, whatever the bytes and line endings."""
    before, after = (decode(data).split("\n") for data in (old, new))
    lines = [[f"{line}\n" for line in text[:-1]] + ([text[-1]] if text[-1] else []) for text in (before, after)]
    made = []
    for line in difflib.unified_diff(lines[0], lines[1], f"a/{path}", f"b/{path}"):
        made.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(made).encode("utf-8", "surrogateescape")


def write(source: Source, data: bytes) -> bool:
    """Replace a local file with `data`, atomically. Returns False if we may not write."""
    path = Path(source.path)
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return False
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def may_push(client: ForgeClient, repository: Repository) -> bool:
    """Whether our token may push to the repository. Raises ForgeError."""
    return bool({"push", "admin"} & client.repository(repository.owner, repository.name).permissions)


def offer(client: ForgeClient, source: Source, old: RemoteFile, new: bytes, *, slug: str, title: str, body: str) -> str:
    """Open a pull request with the changed file, and return its URL. Repeatable: reuses a branch that an earlier attempt left.

    Raises ForgeError, and SourceError if that branch has another change.
    """
    repository = source.repository
    assert repository
    owner, name, base = repository.owner, repository.name, repository.default_branch
    branch = f"cc-ci/close-{plain(slug)[:80]}"
    try:
        client.change_file(owner, name, old, new, branch=base, new_branch=branch, message=title)
    except Rejected:
        try:
            there = client.read_file(owner, name, source.path, branch)
        except NotFound:
            there = None
        if there is None:
            raise
        if there.content != new:
            raise SourceError(
                f"{repository.full_name} has a branch {branch} with another change. Delete it at the forge, and run the "
                "command again."
            ) from None
    try:
        return client.open_pull(owner, name, head=branch, base=base, title=title, body=body).html_url
    except Rejected as error:
        if error.status != 409:
            raise
        return kind_of(repository.forge).pages.pulls.format(repository=repository.html_url)  # it is asked for already
