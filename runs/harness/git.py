"""The git command, for repositories of strangers: no hook, no helper, no foreign protocol, a credential that stays nowhere."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra import gitrules
from infra.deployers import children
from runs.harness import disk

#: For one command: a forge that sends less than this takes is not waited for.
_SECONDS = 900.0
#: Of one process of git. It maps packs, which do not count, and holds one object at a time.
_MEMORY_MB = 1024
#: A pack that grows may be this much bigger than it may before it is seen.
_MORE_MB = 64


class CheckoutError(Exception):
    """The commit could not be brought here. `recipes_fault` is true when the commit itself is the reason."""

    def __init__(self, message: str, recipes_fault: bool = False) -> None:
        super().__init__(message)
        self.recipes_fault = recipes_fault


class Git:
    """git in `folder`, which may fetch from `url`. `check` is called while git works, and raises when the run shall stop."""

    def __init__(
        self,
        folder: Path,
        url: str,
        credential: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
        disk_mb: int = 2048,
    ) -> None:
        self.folder = folder
        self.url = url
        self.local = local_path(url)
        self.check = check
        self.disk = disk_mb << 20
        self._credential = dict(credential or {})

    @property
    def remote(self) -> str:
        """What to name to git: a folder here by its path, anything else by its URL."""
        return str(self.local or self.url)

    def run(
        self, *arguments: str, folder: Path | None = None, seconds: float = _SECONDS, settings: Mapping[str, str] | None = None
    ) -> str:
        """Run git in the folder, or in another: its output. `settings` is more configuration for this one command.

        Raises CheckoutError with git's own reason, and OSError when the disk is full.
        """
        try:
            done = children.run(
                ["git", "-C", str(folder or self.folder), *arguments],
                env=self.environment(settings),
                seconds=seconds,
                check=self._watch,
                memory_mb=_MEMORY_MB,
                file_mb=(self.disk >> 20) + _MORE_MB,
                umask=0o022,
            )
        except FileNotFoundError as error:
            raise CheckoutError("There is no git command here. Type: apt-get install git") from error
        except children.TooLong as error:
            raise CheckoutError(f"git {arguments[0]}: {error}.") from error
        except children.TooMuch as error:
            raise CheckoutError(f"git {arguments[0]}: {error}.", recipes_fault=True) from error
        if done.code:
            self._refuse_size()
            if disk.said_so(done.code, done.err, self.folder):
                raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
            raise CheckoutError(f"git {arguments[0]}: {gitrules.reason(done.err[:4000]) or _ended(done.code)}")
        return done.out.decode(errors="surrogateescape")

    def _watch(self) -> None:
        self.check()
        self._refuse_size()

    def _refuse_size(self) -> None:
        bare = (self.folder / "objects").is_dir()
        packs = self.folder.glob("objects/pack/*" if bare else ".git/objects/pack/*")
        try:
            size = sum(pack.stat().st_size for pack in packs)
        except OSError:  # renamed while we looked
            return
        if size > self.disk:
            raise CheckoutError(f"The recipe's repository is bigger than {self.disk >> 20} MB.", True)

    def environment(self, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        """All that git gets."""
        protocols = ("http", "https", "file") if self.local else ("http", "https")
        user = self._credential.get("git_username") or "git"
        return gitrules.environment(self.url, protocols, self._credential.get("git_token", ""), user, settings)


def _ended(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"


def secrets_of(credential: Mapping[str, str]) -> list[str]:
    """What must never show in a log: the token, and the forms in which git may print it."""
    token = credential.get("git_token", "")
    if not token:
        return []
    user = credential.get("git_username") or "git"
    return [token, gitrules.basic(token, user)]


def local_path(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(urlsplit(url).path)
    if "://" in url or ":" in url.partition("/")[0][1:]:  # such as git@forge.example.org:recipe
        return None
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else None
