"""Brings the pinned commit of a recipe here, with nothing of the credential left in what the recipe's code sees."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from runs.harness.protocol import Source

_SHA = re.compile(r"[0-9a-f]{40}")
_MOST_FILES = 50_000


class CheckoutError(Exception):
    """The commit could not be brought here. `recipes_fault` is true when the commit itself is the reason."""

    def __init__(self, message: str, recipes_fault: bool = False) -> None:
        super().__init__(message)
        self.recipes_fault = recipes_fault


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
        self._credential = dict(credential or {})
        self._check = check
        self._disk = disk_mb << 20
        self._local = _local_path(source.url)

    def make(self) -> str:
        """Fill the target folder. Gives the commit's 40 digits; empty for a working tree that is no commit."""
        self._target.mkdir(parents=True, mode=0o755)
        if not self._source.sha:
            if self._local is None:
                raise CheckoutError("A clone URL needs the commit that shall be tested.")
            return self._copy_working_tree(self._local)
        if not _SHA.fullmatch(self._source.sha):
            raise CheckoutError(f"{self._source.sha[:60]!r} is no full commit id of 40 hex digits.")
        if self._source.ref.startswith("-") or ("://" not in self._source.url and self._local is None):
            raise CheckoutError("The source is neither a URL nor a folder here.")
        self._fetch()
        self._refuse_bombs()
        self._git("checkout", "--quiet", "--detach", self._source.sha)
        if (head := self._git("rev-parse", "HEAD").strip()) != self._source.sha:
            raise CheckoutError(f"Wanted commit {self._source.sha[:12]}, got {head[:12]}.")
        shutil.rmtree(self._target / ".git")
        return self._source.sha

    def tip(self, ref: str) -> str:
        """The commit that `ref` of the source points to now."""
        lines = self._git("ls-remote", "--", str(self._local or self._source.url), ref, f"refs/tags/{ref}^{{}}").splitlines()
        found = {name: sha for sha, _, name in (line.partition("\t") for line in lines)}
        for name in (f"refs/tags/{ref}^{{}}", ref, f"refs/heads/{ref}", f"refs/tags/{ref}"):
            if name in found:
                return found[name]
        raise CheckoutError(f"{self._source.url} has no {ref}.")

    def _fetch(self) -> None:
        url, sha, ref = str(self._local or self._source.url), self._source.sha, self._source.ref
        self._git("init", "--quiet")
        try:
            self._git("fetch", "--quiet", "--no-tags", "--depth=1", "--", url, sha)
        except CheckoutError:
            # Not every server hands out a commit by its id.
            if not ref:
                raise
            self._git("fetch", "--quiet", "--no-tags", "--", url, ref)
            try:
                self._git("cat-file", "-e", f"{sha}^{{commit}}")
            except CheckoutError as error:
                raise CheckoutError(f"{ref} does not contain the commit {sha[:12]} any more.") from error

    def _refuse_bombs(self) -> None:
        """A small commit may unfold into a huge tree: count before anything is written."""
        size = count = 0
        command = ["git", "-C", str(self._target), "ls-tree", "-r", "-l", "-z", self._source.sha]
        with subprocess.Popen(command, env=self._environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout
            rest = b""
            while block := process.stdout.read(1 << 16):
                self._check()
                *entries, rest = (rest + block).split(b"\0")
                for entry in entries:
                    count += 1
                    digits = entry.split(b"\t")[0].rpartition(b" ")[2]
                    size += int(digits) if digits.isdigit() else 0
                if count > _MOST_FILES or size > self._disk:
                    process.kill()
                    raise CheckoutError(f"The recipe is too big: more than {_MOST_FILES} files or {self._disk >> 20} MB.", True)

    def _copy_working_tree(self, folder: Path) -> str:
        try:
            listed = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
        except CheckoutError:
            shutil.copytree(folder, self._target, symlinks=True, dirs_exist_ok=True, ignore=_no_git)
            return ""
        for name in filter(None, listed.split("\0")):
            source, target = folder / name, self._target / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        try:
            changed = self._git("status", "--porcelain", "--", ".", folder=folder).strip()
            return "" if changed else self._git("rev-parse", "HEAD", folder=folder).strip()
        except CheckoutError:  # no commit yet
            return ""

    def _git(self, *arguments: str, folder: Path | None = None) -> str:
        """Run git in the target, or in `folder`: its output. Raises CheckoutError with git's own reason."""
        command = ["git", "-C", str(folder or self._target), *arguments]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=errors, umask=0o022
            )
            wait = 0.002
            try:
                while process.poll() is None:
                    self._check()
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
        packs = (self._target / ".git" / "objects" / "pack").glob("*")
        try:
            size = sum(pack.stat().st_size for pack in packs)
        except OSError:  # renamed while we looked
            return
        if size > self._disk:
            raise CheckoutError(f"The recipe's repository is bigger than {self._disk >> 20} MB.", True)

    def _environment(self) -> dict[str, str]:
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
            "protocol.file.allow": "always" if self._local else "never",
            "safe.directory": "*",
            "submodule.recurse": "false",
            "transfer.fsckObjects": "true",
        }
        if token := self._credential.get("git_token"):
            user = self._credential.get("git_username") or "git"
            parts = urlsplit(self._source.url)
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


def _local_path(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(urlsplit(url).path)
    if "://" in url or re.match(r"[^/]+@?[^/]*:", url):
        return None
    path = Path(url).expanduser().resolve()
    return path if path.is_dir() else None


def _no_git(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == ".git"]


def resolve(url: str, ref: str = "", sha: str = "") -> Source:
    """A source with its commit pinned: the tip of `ref` (or of the default branch of a URL) when no `sha` is given.

    A folder's path with neither stays the working tree as it is; a `file://` URL is cloned. Raises CheckoutError for what
    is not there.
    """
    local = _local_path(url)
    if local is None and "://" not in url and not re.match(r"[^/]+@[^/]+:", url):
        raise CheckoutError(f"There is no folder {url}.")
    if sha and not _SHA.fullmatch(sha):
        raise CheckoutError(f"{sha!r} is no full commit id of 40 hex digits.")
    source = Source(url=str(local or url), ref=ref, sha=sha)
    if sha or (local and not ref and "://" not in url):
        return source
    found = Checkout(source, local or Path("/")).tip(ref or "HEAD")
    return source.model_copy(update={"sha": found, "ref": ref or "HEAD"})
