"""The git command, for repositories of strangers: no hook, no helper, no foreign protocol, a credential that stays nowhere."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra import gitrules


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

    def run(self, *arguments: str, folder: Path | None = None, index: Path | None = None) -> str:
        """Run git in the folder, or in another: its output. Raises CheckoutError with git's own reason."""
        command = ["git", "-C", str(folder or self.folder), *arguments]
        env = self.environment() | ({"GIT_INDEX_FILE": str(index)} if index else {})
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, umask=0o022)
            wait = 0.002
            try:
                while process.poll() is None:
                    self.check()
                    self._refuse_size()
                    time.sleep(wait)
                    wait = min(wait * 2, 0.2)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            output.seek(0)
            errors.seek(0)
            if process.returncode:
                raise CheckoutError(f"git {arguments[0]}: {gitrules.reason(errors.read(4000)) or process.returncode}")
            return output.read().decode(errors="surrogateescape")

    def _refuse_size(self) -> None:
        bare = (self.folder / "objects").is_dir()
        packs = self.folder.glob("objects/pack/*" if bare else ".git/objects/pack/*")
        try:
            size = sum(pack.stat().st_size for pack in packs)
        except OSError:  # renamed while we looked
            return
        if size > self.disk:
            raise CheckoutError(f"The recipe's repository is bigger than {self.disk >> 20} MB.", True)

    def environment(self) -> dict[str, str]:
        """All that git gets."""
        protocols = ("http", "https", "file") if self.local else ("http", "https")
        user = self._credential.get("git_username") or "git"
        return gitrules.environment(self.url, protocols, self._credential.get("git_token", ""), user)


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
    if "://" in url or re.match(r"[^/]+@?[^/]*:", url):
        return None
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else None
