"""The git command, for repositories of strangers: no hook, no helper, no foreign protocol, a credential that stays nowhere."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit


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
                raise CheckoutError(f"git {arguments[0]}: {_reason(errors.read(4000)) or process.returncode}")
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
        """All that git gets. Configuration in the environment ends with the process and is written nowhere."""
        settings = {
            "core.hooksPath": "/dev/null",
            "core.fsmonitor": "false",
            "credential.helper": "",
            "fetch.recurseSubmodules": "false",
            "gc.auto": "0",
            "init.defaultBranch": "main",
            "protocol.allow": "never",
            "protocol.http.allow": "always",
            "protocol.https.allow": "always",
            "protocol.file.allow": "always" if self.local else "never",
            "safe.directory": "*",
            "submodule.recurse": "false",
            "transfer.fsckObjects": "true",
        }
        if token := self._credential.get("git_token"):
            user = self._credential.get("git_username") or "git"
            parts = urlsplit(self.url)
            header = base64.b64encode(f"{user}:{token}".encode()).decode()
            # Only for this server, and not for one that it sends us to.
            settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = f"Authorization: Basic {header}"
            settings["http.followRedirects"] = "false"
        env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings.items()):
            env[f"GIT_CONFIG_KEY_{number}"] = key
            env[f"GIT_CONFIG_VALUE_{number}"] = value
        return env


def _reason(errors: bytes) -> str:
    """The line in which git says why; what follows it is general advice."""
    lines = errors.decode(errors="replace").strip().splitlines()
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
    return (fatal or lines or [""])[0].strip()


def secrets_of(credential: Mapping[str, str]) -> list[str]:
    """What must never show in a log: the token, and the forms in which git may print it."""
    token = credential.get("git_token", "")
    if not token:
        return []
    user = credential.get("git_username") or "git"
    return [token, base64.b64encode(f"{user}:{token}".encode()).decode()]


def local_path(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(urlsplit(url).path)
    if "://" in url or re.match(r"[^/]+@?[^/]*:", url):
        return None
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else None
