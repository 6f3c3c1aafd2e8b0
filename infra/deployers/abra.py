"""The deployer `abra` (experimental): Co-op Cloud's own tool puts the recipe there; the rest is looked at as on any Swarm.

Never chosen by `auto`. It was written without the tool at hand, from public notes on its behaviour: what no source confirmed says
"unverified". abra wants a terminal, tells fatal errors on stdout, and its exit codes prove nothing, so it runs under a
pseudo-terminal (where both streams are one) and its output is searched for FATA lines.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect

from infra.deployers import compose, ports, settling, words
from infra.deployers.base import Context, DeployError, Deployment
from infra.deployers.docker_cli import docker, environment
from infra.deployers.lasting import LastingDeployer
from infra.deployers.stacks import LABEL_STACK, Owned
from infra.deployers.swarm import SwarmDeployer

_SECONDS = 300.0
_SERVER = "default"  #: what `abra server add --local` calls this machine's own Docker
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_FATAL = re.compile(r"^\s*FATA(?:\[\d+\])?\s*(?:<[^>]*>)?\s*(.*\S)\s*$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^(\s*(?:export\s+)?)([A-Za-z_][A-Za-z0-9_]*)=")
_BORDERS = str.maketrans(dict.fromkeys("│┃|║", "│"))
_COLUMNS = ("ref", "rule", "severity", "satisfied", "skipped", "resolve")


def problem() -> str:
    """Why abra cannot be used here; empty when it can."""
    return "" if shutil.which("abra") else "There is no abra command here."


FIX = "Install abra (https://docs.coopcloud.tech/abra/install/), or set CC_CI_DEPLOYER to auto, swarm or process."


class AbraDeployer(SwarmDeployer):
    """One app of an abra of its own: ABRA_DIR lies in the run's folder, and nothing there is shared with another run.

    The stack is told from others by its name, which abra makes of the run's own domain: abra sets none of our labels.
    """

    name = "abra"

    @property
    def stack(self) -> str:
        return app_stack(self.context.domain)

    @property
    def owned(self) -> Owned:
        return Owned(self.stack, (f"{LABEL_STACK}={self.stack}",))

    @property
    def folder(self) -> Path:
        """The run's ABRA_DIR."""
        return self.context.work / "abra"

    def new(self, checkout: Path | None = None) -> None:
        self._begin()
        self._checkout = checkout or self.context.checkout
        self._prepare(self._load())

    def _prepare(self, recipe: compose.Recipe) -> None:
        """The recipe's checkout, the app's `.env` and its secrets, as abra wants them."""
        if not (self.folder / "servers" / _SERVER).is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.abra("server", "add", "--local", "-n")
        _place(self._checkout, self.folder / "recipes" / self.context.recipe)
        file = self.folder / "servers" / _SERVER / f"{self.context.domain}.env"
        file.parent.mkdir(parents=True, exist_ok=True)
        sample = self._checkout / ".env.sample"
        file.write_text(env_file(sample.read_text() if sample.is_file() else "", self._env()))
        missing = {secret.name for secret in recipe.secrets()} - set(self._secret_names())
        if missing:
            said = self.abra("app", "secret", "generate", self.context.domain, "--all", "-n", "-m", "-C")  # --all: unverified
            self._secrets += [row["value"] for row in rows(said) if row.get("value")]

    def _env(self) -> dict[str, str]:
        own = {"TYPE": self.context.recipe, "DOMAIN": self.context.domain}
        return {**self.context.env, **own} if self.context.app else {**self.context.env, **own, "LETS_ENCRYPT_ENV": ""}

    def _put(self) -> None:
        self._recipe = recipe = self._load()
        for image in recipe.images:
            self._get(image)
        self._web = recipe.web(frozenset())
        # abra deploys the ports as they are written, so a run has to have each of them for itself.
        published = [port for s in recipe.services.values() for port in ports.read(s.get("ports") or [])]
        self._leases.take(port.published for port in published if port.published)
        self._prepare(recipe)
        self._before = settling.specs(self.owned.services())
        self._created += not self._before
        self._count += 1
        self.abra("app", "deploy", self.context.domain, "-C", "-c", "-n", "-D", "-f")
        if not self.owned.services():
            raise DeployError("tool_failed", f"abra deployed no stack {self.stack}.", "See abra's output in the log.")

    def _mark(self) -> str:
        return ""  # abra knows nothing of our numbers

    def settle(self) -> Deployment:
        settled = super().settle()
        with suppress(DeployError):
            for row in rows(self.abra("app", "ps", self.context.domain, "-m", "-n")):
                self.context.log(f"abra app ps: {' '.join(f'{key}={value}' for key, value in row.items())}")
        return settled

    def lint(self) -> list[dict[str, str]]:
        """The table of `abra recipe lint` for the recipe as `new` or `deploy` placed it. Raises DeployError."""
        return lint_table(self.abra("recipe", "lint", self.context.recipe, "-C", "-n"))

    def undeploy(self) -> None:
        with suppress(DeployError):  # it returns before the stack is gone; what counts is looked at below
            self.abra("app", "undeploy", self.context.domain, "-n")
        super().undeploy()

    def teardown(self) -> list[str]:
        if self._count and not problem():
            for command in (("undeploy",), ("volume", "rm"), ("secret", "rm")):
                options = ("--all",) if command[0] == "secret" else ("-f",) if command[0] == "volume" else ()
                with suppress(DeployError):
                    self.abra("app", *command, self.context.domain, *options, "-n")
        left = super().teardown()
        with suppress(DeployError):
            if names := self._secret_names():  # whatever labels abra gave them
                docker("secret", "rm", *names)
        with suppress(DeployError):
            left += [f"secret {name}" for name in self._secret_names()]
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _secret_names(self) -> list[str]:
        names = docker("secret", "ls", "--format={{.Name}}", f"--filter=name={self.stack}_").split()
        return [name for name in names if name.startswith(f"{self.stack}_")]

    def abra(self, *arguments: str, seconds: float = _SECONDS) -> str:
        """Run abra: what it wrote, as plain text. Raises DeployError with its FATA line, or when it does not end."""
        if said := problem():
            raise DeployError("tool_missing", said, FIX)
        env = {**environment(), "ABRA_DIR": str(self.folder), "LC_ALL": "C", "TERM": "dumb"}
        text = plain(on_terminal(["abra", *arguments], env, self.context, seconds))
        if said := fatal(text):
            raise self._failed(arguments, said)
        return text

    @staticmethod
    def _failed(arguments: Sequence[str], said: str) -> DeployError:
        known = words.refused(said)
        if arguments[:2] == ("app", "deploy") and known.kind in ("config_immutable", "port_taken"):
            return known
        command = " ".join(("abra", *arguments[:3]))
        return DeployError("tool_failed", f"{command}: {said}.", "Run the same command by hand, with a recent abra.")


class LastingAbra(LastingDeployer, AbraDeployer):
    """An app of the server that abra deploys. Its stack has the name that abra gives it."""

    mark = ""


def app_stack(domain: str) -> str:
    """The stack's name that abra makes of an app's domain (unverified; 45 characters at most)."""
    return domain.replace(".", "_")[:45]


def on_terminal(command: Sequence[str], env: Mapping[str, str], context: Context, seconds: float) -> str:
    """Run a command under a pseudo-terminal of its own: all it wrote. Raises DeployError when it does not end in time.

    The terminal is wide, so that no table is folded. Nobody answers a question: the command has to end without.
    """
    child = pexpect.spawn(
        command[0], list(command[1:]), env=dict(env), encoding="utf-8", codec_errors="replace", dimensions=(200, 400), echo=False
    )
    until = time.monotonic() + seconds
    said: list[str] = []
    try:
        while True:
            context.check()
            if time.monotonic() > until:
                last = " ".join(plain("".join(said)).split())[-200:]
                raise DeployError(
                    "tool_failed",
                    f"{' '.join(command[:3])} did not end within {seconds:g} s{f'; its last words: {last}' if last else ''}.",
                    "It may wait for an answer that nobody gives.",
                )
            try:
                said.append(child.read_nonblocking(65536, timeout=0.25))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                return "".join(said)
    finally:
        child.close(force=True)


def plain(text: str) -> str:
    """Terminal output without colours, cursor movements and carriage returns."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def fatal(text: str) -> str:
    """The words of abra's first fatal error; empty without one. They come on stdout, and the exit code may be 0."""
    match = _FATAL.search(text)
    return match[1].rstrip(".") if match else ""


def machine(text: str) -> Any:
    """The JSON that abra wrote with `-m`, whatever lines stand before it; None without any. All its values are strings."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^\s*([\[{])", text, re.MULTILINE):
        with suppress(ValueError):
            return decoder.raw_decode(text, match.start(1))[0]
    return None


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a `-m` answer: a list of maps, or a map of maps as `app ps` gives it (its key becomes `service`)."""
    found = machine(text)
    if isinstance(found, Mapping):
        found = [{"service": key, **value} for key, value in found.items() if isinstance(value, Mapping)]
    if not isinstance(found, list):
        return []
    return [{str(key): str(value) for key, value in row.items()} for row in found if isinstance(row, Mapping)]


def env_file(sample: str, values: Mapping[str, str]) -> str:
    """An app's `.env`: the sample with these values in it, comments kept (they hold the lengths of secrets)."""
    left, lines = dict(values), []
    for line in sample.splitlines():
        match = _ASSIGNMENT.match(line)
        if match and match[2] in values:
            left.pop(match[2], None)
            line = f"{match[1]}{match[2]}={_quoted(values[match[2]])}"
        lines.append(line)
    lines += [f"{key}={_quoted(value)}" for key, value in left.items()]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[A-Za-z0-9_./:@+,-]*", value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def lint_table(text: str) -> list[dict[str, str]]:
    """The rows of `abra recipe lint`'s table: ref, rule, severity, satisfied, skipped, resolve.

    Unverified: made from the names of the columns, for a table with box-drawing borders or `|`. A cell folded over several lines
    is put together again; a table with other columns gives nothing.
    """
    columns: tuple[str, ...] = ()
    found: list[dict[str, str]] = []
    for line in plain(text).translate(_BORDERS).splitlines():
        if line.count("│") < len(_COLUMNS) - 1:
            continue
        cells = [cell.strip() for cell in line.strip().strip("│").split("│")]
        if not columns:
            columns = tuple(cell.lower() for cell in cells)
            if columns[: len(_COLUMNS)] != _COLUMNS:
                columns = ()
            continue
        row = dict(zip(columns, cells, strict=False))
        if row.get("ref"):
            found.append(row)
        elif found:
            for key, value in row.items():
                found[-1][key] = f"{found[-1][key]} {value}".strip()
    return found


def _place(checkout: Path, folder: Path) -> None:
    """Copy a checkout to where abra looks for the recipe, as a git repository, which it insists on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkout, folder, symlinks=True)
    if (folder / ".git").exists():
        return
    name = ("-c", "user.name=cc-ci", "-c", "user.email=cc-ci@localhost")
    for command in (("init", "--quiet"), ("add", "--all", "--force"), (*name, "commit", "--quiet", "--message=As it is")):
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise DeployError("tool_failed", f"git {command[0]} for abra: {done.stderr.strip()[-200:]}.")
