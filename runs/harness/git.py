"""git for one run: the recipe's repository, with a size limit and a credential that is not stored anywhere."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra.deployers.isolation.children import Done
from infra.git import environment as git_environment
from infra.git import runner
from infra.git.runner import GitError
from runs.harness import disk_full

#: Maximum time of one command, including retries.
_SECONDS = 900.0
#: How long a stumbling forge is retried.
PATIENCE = 300.0
#: How far a growing pack may exceed the limit before it is noticed.
_MORE_MB = 64


class Git:
    """git in `folder`, with `url` as its remote. `check` is called while git works, and raises if the run has to stop.
    `report` is called each time a forge stumbles.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        credential: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
        disk_mb: int = 2048,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.url = url
        self.local = local_path(url)
        self.check = check
        self.disk = disk_mb << 20
        self.report = report
        self._credential = dict(credential or {})
        self._git = runner.Git(folder, self.environment(), self._watch, self._explain, disk_mb + _MORE_MB, 0o022)

    @property
    def remote(self) -> str:
        """How to name the remote to git: a local folder by its path, anything else by its URL."""
        return str(self.local or self.url)

    def run(self, *arguments: str, folder: Path | None = None, settings: Mapping[str, str] | None = None) -> str:
        """Run git in the folder, or in another, and return its output. `settings`: extra configuration for this command.

        Raises GitError with git's own reason, and OSError if the disk is full.
        """
        return _text(self._git.run(*arguments, seconds=_SECONDS, folder=folder, env=self.environment(settings)))

    def fetch(self, *wanted: str, depth: int = 0) -> None:
        """Fetch refs from the remote, retrying while it stumbles. Raises as `run` does, and Stumbled."""
        shallow = [f"--depth={depth}"] if depth else []
        self._ask("fetch", "--quiet", "--no-tags", *shallow, "--", self.remote, *wanted, seconds=_SECONDS, patience=PATIENCE)

    def ls_remote(self, *wanted: str, seconds: float) -> str:
        """The remote's listing of these refs and of its HEAD, whose absence means a failed listing. Raises as `fetch` does."""
        return self._ask("ls-remote", "--", self.remote, "HEAD", *wanted, seconds=seconds, patience=seconds)

    def _ask(self, *arguments: str, seconds: float, patience: float) -> str:
        if self.local:
            return self.run(*arguments)
        options = {"seconds": seconds, "patience": patience}
        return _text(self._git.ask(self.remote, *arguments, **options, report=self.report, before=self._drop_parts))

    def _drop_parts(self) -> None:
        """Remove partial packs of an interrupted fetch, which would count towards the repository's size."""
        for part in self._packs("tmp_*"):
            part.unlink(missing_ok=True)

    def _explain(self, done: Done) -> None:
        self._refuse_size()
        if disk_full.caused(done.code, done.err, self.folder):
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))

    def _watch(self) -> None:
        self.check()
        self._refuse_size()

    def _refuse_size(self) -> None:
        try:
            size = sum(pack.stat().st_size for pack in self._packs("*"))
        except OSError:  # renamed meanwhile
            return
        if size > self.disk:
            raise GitError(f"The recipe's repository is larger than {self.disk >> 20} MB.", True)

    def _packs(self, name: str) -> Iterator[Path]:
        bare = (self.folder / "objects").is_dir()
        return self.folder.glob(f"{'' if bare else '.git/'}objects/pack/{name}")

    def environment(self, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        """git's environment."""
        protocols = ("http", "https", "file") if self.local else ("http", "https")
        user = self._credential.get("git_username") or "git"
        return git_environment.environment(self.url, protocols, self._credential.get("git_token", ""), user, settings)


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")


def secrets_of(credential: Mapping[str, str]) -> list[str]:
    """What must never appear in a log: the token, and the forms in which git may print it."""
    token = credential.get("git_token", "")
    if not token:
        return []
    user = credential.get("git_username") or "git"
    return [token, git_environment.basic(token, user)]


def local_path(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(urlsplit(url).path)
    if "://" in url or ":" in url.partition("/")[0][1:]:  # such as git@forge.example.org:recipe
        return None
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else None
