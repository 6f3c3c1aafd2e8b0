"""`cc-ci harness`: a whole run in the foreground of a build on a CI server, described by its environment; without a database."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
import zlib
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from pydantic import ValidationError
from rich.console import Console

from controlplane.cli import MISUSE, Exit
from controlplane.processes import AlreadyRunning, hold
from infra.deployers.isolation import trees
from infra.git.runner import GitError
from runs.executors.local import harness_environment, limits, shared_credential, shared_of_machine
from runs.executors.marked_lines import Writer, unmarked
from runs.harness import disk_full
from runs.harness.checkout import resolve
from runs.harness.protocol import FolderState, Request, Results, RunFolder, Source, Verdict
from runs.local import chosen, follow, recipe_of, summary

#: Drone's runner keeps the last 5 MB of a step's log and drops what came before, so all together stays below that.
TEXT_BYTES, EVENT_BYTES, FILE_BYTES, RESULT_BYTES, SUMMARY_BYTES = 1_500_000, 700_000, 1_500_000, 1_000_000, 200_000
#: Servers keep each line of text as an object of its own, which costs some 100 bytes more.
TEXT_LINES = 50_000
#: The longest request to unpack.
REQUEST_BYTES = 1 << 20
#: Lengths of texts and lists for results that are too long, to be tried in turn.
SHORTER = ((4000, 1 << 30), (1000, 1 << 30), (200, 1 << 30), (200, 1000), (200, 100), (100, 10))
CUT = "== This is too long for the log of a build, and is cut here."
_USAGE = "Set CC_CI_RECIPE to the recipe's clone URL, or let cc-ci start the build (docs/executors/)."


class Command(BaseCommand):
    help = "Test a recipe as a build's step: what to run is in the environment."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.epilog = "Environment and pipeline: docs/executors/drone.md and docs/executors/woodpecker.md."

    def handle(self, *args: Any, **options: Any) -> None:
        environ = os.environ
        if problem := _settings_problem(environ):
            raise CommandError(problem, returncode=MISUSE)
        request = request_from(environ)
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        key, attempt = environ.get("CC_CI_KEY", ""), environ.get("CC_CI_ATTEMPT", "1")
        if not attempt.isdecimal():
            raise CommandError(f"Invalid CC_CI_ATTEMPT {attempt!r}: expected a number.", returncode=MISUSE)
        folder = RunFolder(builds() / request.run_id / str(int(attempt)))
        report = Report(folder, Writer(key, request.run_id, int(attempt)) if key else None)
        results: Results | None = None
        lock = None
        try:
            if _works(folder):
                raise CommandError(
                    "Another build of this run still works on this machine: cancel it on its page, or wait for its end.",
                    returncode=MISUSE,
                )
            lock = hold(_lock(folder))
            _sweep(request)
            folder.write_request(request)
            results, message = follow(folder, request, report.console, report, credential(environ, request))
            report.finish(results, message)
        except OSError as error:
            report.say(str(disk_full.full(error, settings.CC_CI.data_dir) or f"Could not start the run: {error}."))
        finally:
            if lock is not None:
                trees.remove(folder.path.parent)
                _lock(folder).unlink(missing_ok=True)
                os.close(lock)
        verdict = results.verdict if results else Verdict.ERRORED
        raise Exit({Verdict.PASSED: 0, Verdict.FAILED: 1}.get(verdict, 2))


class Report:
    """Prints what the folder gets: its log as text, and for cc-ci events, files and results as marked lines."""

    def __init__(self, folder: RunFolder, writer: Writer | None) -> None:
        self._folder, self._writer = folder, writer
        self.console = Console(file=sys.stdout, no_color=True, width=150)
        self._seen = self._position = self._events = 0
        self._left, self._lines = TEXT_BYTES, TEXT_LINES  #: of the text's share
        self._rest = b""
        self._parent = os.getppid()

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, folder: RunFolder) -> None:
        """Print what is new."""
        if os.getppid() != self._parent:
            # The runner killed the shell that started us: stop, and tear down.
            self._cancel()
        self._show_log()
        for event in folder.events(self._seen):
            self._seen = event.seq
            if self._writer and self._events < EVENT_BYTES:
                self._events += self._print(self._writer.event(event.model_dump_json(), EVENT_BYTES - self._events))

    def finish(self, results: Results | None, message: str) -> None:
        self.show(self._folder)
        self._left, self._lines = SUMMARY_BYTES, TEXT_LINES
        if results is None:
            self.say(f"The harness ended without results. {message[-2000:]}".strip())
            return
        if self._writer:
            results = self._report_results(results, self._writer)
        with self.console.capture() as captured:
            summary(results, self.console)
        self.say(captured.get())
        if self._writer:
            left = FILE_BYTES
            for name, data in self._files(results):
                file = self._writer.file(name, data, left)
                if not file:
                    self.say(f"{name} is not kept: it is too big for the log of a build.")
                left -= self._print(file)
            self._print(self._writer.end())

    def say(self, text: str) -> None:
        """Print text: nothing in it looks like a line of ours, and no more of it than is left of its share."""
        data = f"{unmarked(text)}\n".encode(errors="replace")
        if self._left <= 0:
            return
        if (lines := data.count(b"\n")) > self._lines:
            data = b"\n".join(data.split(b"\n", self._lines)[: self._lines]) + b"\n"
            self._left = len(data) - 1  # this is the last that is printed
        self._lines -= lines
        self._left -= len(data)
        self._print([data[: self._left].decode(errors="ignore"), CUT] if self._left < 0 else [data[:-1].decode()])

    def _report_results(self, results: Results, writer: Writer) -> Results:
        """Print the results' lines, and return what they say: it is shorter if it was too long."""
        lines = writer.results(results.model_dump_json(), RESULT_BYTES)
        for longest, most in SHORTER if not lines else ():
            value = _shortened(results.model_dump(mode="json"), longest, most)
            shorter = Results.model_validate(value)
            shorter.warnings.append("The results are too long for the log of a build, and were shortened.")
            if lines := writer.results(shorter.model_dump_json(), RESULT_BYTES):
                results = shorter
                break
        self._print(lines)
        return results

    def _cancel(self) -> None:
        with suppress(OSError):
            self._folder.cancel.touch()

    def _files(self, results: Results) -> Iterator[tuple[str, bytes]]:
        """The artefacts, the smallest first. The log is printed anyway."""
        paths = [self._folder.path / artefact.name for artefact in results.artefacts if artefact.kind != "log"]
        for path in sorted((path for path in paths if path.is_file()), key=lambda path: path.stat().st_size):
            yield path.name, path.read_bytes()

    def _show_log(self) -> None:
        with suppress(FileNotFoundError), self._folder.log.open("rb") as stream:
            stream.seek(self._position)
            data = stream.read(1 << 20)
            self._position += len(data)
            whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
            if newline:
                self.say(whole.decode(errors="replace"))

    def _print(self, lines: list[str]) -> int:
        """Print lines, and return how many bytes that was."""
        try:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads it any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._cancel()
        return sum(len(line) + 1 for line in lines)


def _shortened(value: Any, longest: int, most: int) -> Any:
    """A value of JSON without the middle of long texts, and without the ends of long lists, where what passed goes first."""
    if isinstance(value, str) and len(value) > longest:
        return f"{value[: longest // 2]} … {value[-longest // 2 :]}"
    if isinstance(value, dict):
        return {name: _shortened(one, longest, most) for name, one in value.items()}
    if isinstance(value, list):
        if len(value) > most:
            value = sorted(value, key=lambda one: isinstance(one, dict) and one.get("status") in ("passed", "skipped"))[:most]
        return [_shortened(one, longest, most) for one in value]
    return value


def _settings_problem(environ: Mapping[str, str]) -> str:
    """What the server's variables show to be unsafe about the runner; empty if nothing."""
    if environ.get("CI") == "woodpecker":
        event, usual = environ.get("CI_PIPELINE_EVENT"), "manual"
        limit = "Let the pipeline run `when: event: manual` only, and switch off Allow Pull Requests in Woodpecker."
        private = environ.get("CI_REPO_PRIVATE") == "true"
        hide = "Make it private at the forge, and set its visibility to Private in Woodpecker."
    else:
        event, usual = environ.get("DRONE_BUILD_EVENT") or "custom", "custom"
        limit = "Set in the runner's environment:\n  DRONE_LIMIT_EVENTS=custom"
        private = (environ.get("DRONE_REPO_VISIBILITY") or "private") == "private"
        hide = f"Type:\n  drone repo update --visibility private {environ.get('DRONE_REPO') or 'OWNER/REPO'}"
    if event != usual:
        return (
            f"This is a build for the event {event!r}, and cc-ci starts only {usual} ones. Whoever can cause others gets a shell "
            f"on this machine. {limit}"
        )
    return "" if private else f"Others see the builds of the runner repository, with the keys that sign reports. {hide}"


def request_from(environ: Mapping[str, str]) -> Request:
    """The request in the environment, with what this machine decides. Raises CommandError with code 64."""
    packed = environ.get("CC_CI_REQUEST", "")
    stages = chosen("", False, environ)
    try:
        given = _unpack(packed) if packed else _by_hand(environ)
    except (ValueError, zlib.error, RecursionError) as error:
        raise CommandError(f"CC_CI_REQUEST cannot be read: {error}", returncode=MISUSE) from error
    config, run_id = settings.CC_CI, str(given["run_id"])
    try:
        return Request.model_validate(
            {
                **given,
                # Another name than the control plane's, and one for each machine: each removes what it takes for its left-overs,
                # also in a Swarm that several share.
                "installation_id": f"{given['installation_id']}-builds-{config.host}",
                "stages": stages,
                "deployer": config.deployer,
                "domain": f"{uuid.UUID(run_id).hex[:12]}.{config.domain}" if config.domain else "",
                "proxy_url": config.proxy_url,
                **shared_of_machine(),
            }
        )
    except ValidationError as error:
        text = " ".join(str(error).split())[:500]
        raise CommandError(
            f"CC_CI_REQUEST cannot be read: is this cc-ci of the same version as the one that asks? {text}", returncode=MISUSE
        ) from error


def _unpack(packed: str) -> dict[str, Any]:
    reader = zlib.decompressobj()
    text = reader.decompress(base64.urlsafe_b64decode(packed), REQUEST_BYTES)
    value = json.loads(text)
    if not isinstance(value, dict) or "installation_id" not in value:
        raise ValueError("not a request")
    run_id = value.get("run_id")
    if not isinstance(run_id, str) or run_id != str(uuid.UUID(run_id)):  # it names folders
        raise ValueError("not a request")
    return value


def _by_hand(environ: Mapping[str, str]) -> dict[str, Any]:
    """A request for what a person typed on the server's page."""
    url, ref, sha = (environ.get(name, "").strip() for name in ("CC_CI_RECIPE", "CC_CI_REF", "CC_CI_SHA"))
    if "://" not in url:
        raise CommandError(f"Nothing to test. {_USAGE}", returncode=MISUSE)
    try:
        source = resolve(url, ref, sha, _git_credential(environ, [url]))
    except GitError as error:
        raise CommandError(str(error), returncode=MISUSE) from error
    return {
        "run_id": str(uuid.uuid4()),
        "installation_id": "own",
        "recipe": recipe_of(source),
        "source": source.model_dump(),
        "base": Source(url=url, ref="HEAD").model_dump() if ref else None,
        # The ref of a pull request may be anybody's, and so may a commit: forges serve those of forks by their ids, too.
        "trusted": not ref and not sha,
        "limits": limits().model_dump(),
    }


def credential(environ: Mapping[str, str], request: Request) -> dict[str, str]:
    """The secrets that the harness gets: those of this machine's settings, and those of the server."""
    urls = [source.url for source in (request.source, request.base, request.tests) if source]
    found = shared_credential() | _git_credential(environ, urls)
    if logins := environ.get("CC_CI_REGISTRY_LOGINS", ""):
        found["registry_auth"] = logins
    return found


def _git_credential(environ: Mapping[str, str], urls: Sequence[str]) -> dict[str, str]:
    """The login for the forge, for repositories there only: whoever may start builds chooses the addresses.

    The forge is that of the runner repository, whose address the server sets (Drone), or the pipeline (Woodpecker); of both
    variables no parameter can be the only one.
    """
    token = environ.get("CC_CI_GIT_TOKEN", "")
    forges = {_place(environ[name]) for name in ("DRONE_GIT_HTTP_URL", "CI_REPO_CLONE_URL") if environ.get(name)}
    if not token or len(forges) != 1 or forges != set(map(_place, urls)) or "" in next(iter(forges)):
        return {}
    return {"git_username": environ.get("CC_CI_GIT_USERNAME", "") or "cc-ci", "git_token": token}


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def builds() -> Path:
    """The folder of builds: not that of runs, which belongs to a control plane that may be on this machine, too."""
    return Path(settings.CC_CI.data_dir) / "builds"


def _lock(folder: RunFolder) -> Path:
    """Held while a build prints what its folder gets."""
    return builds() / f"{folder.path.parent.name}-{folder.path.name}.lock"


def _works(folder: RunFolder) -> bool:
    """Whether a build is at work there: its harness, or we for it. After a restart by hand, the folder is the same."""
    try:
        os.close(hold(_lock(folder)))
    except AlreadyRunning:
        return True
    return folder.state() is FolderState.RUNNING


def _sweep(request: Request) -> None:
    """Remove what killed builds of this installation left on this machine, and nothing of a build that works."""
    folder = builds()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "runs.harness",
        "sweep",
        "--installation",
        request.installation_id,
        "--runs-dir",
        str(folder),
    ]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command,
            cwd=settings.BASE_DIR,
            env=harness_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    for run in {attempt.parent for attempt in folder.glob("*/*")}:
        if not any(_works(RunFolder(attempt)) for attempt in run.glob("*")):
            trees.remove(run)
            for lock in folder.glob(f"{run.name}-*.lock"):
                lock.unlink(missing_ok=True)
