"""A run of a recipe on this machine, with no forge and no database: what `cc-ci run` and `cc-ci test` share."""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from controlplane.cli import MISUSE, Exit
from infra.deployers import children, trees
from infra.deployers.base import stack_name
from runs.executors.local import limits, shared_credential, shared_of_machine
from runs.harness import disk
from runs.harness.checkout import resolve
from runs.harness.git import CheckoutError
from runs.harness.protocol import DEFAULT_STAGES, STAGES, Event, Request, Results, RunFolder, Verdict

#: What the harness may see of our environment: no setting, no secret.
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "CC_CI_CHROMIUM"),
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
)
#: What a harness has for its teardown, when its time is up or nobody is there any more who waits for it.
_GRACE_SECONDS = 120.0
_COLOURS = {"passed": "green", "failed": "red", "errored": "red", "timed_out": "red", "cancelled": "yellow"}
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class LocalRun(BaseCommand):
    """The common part of both commands. A command adds its own arguments, `source` among them."""

    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stages", default="", help=f"exactly these, by commas, of: {', '.join(STAGES)} (or in the environment: STAGES)"
        )
        parser.add_argument("--extra-tests", action="store_true", help="the extra tests, too (or EXTRA_TESTS=1)")
        parser.add_argument("--deployer", choices=("auto", "swarm", "process"), default=settings.CC_CI.deployer)
        parser.add_argument("--untrusted", action="store_true", help="treat the recipe as a stranger's: a sandbox or nothing")
        parser.add_argument("--keep", action="store_true", help="leave the deployment there")
        parser.add_argument("--json", action="store_true", help="print only the results, as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        request = self.request(options)
        folder = RunFolder(settings.CC_CI.data_dir / "local-runs" / request.run_id / "1")
        console = Console(file=sys.stderr, quiet=bool(options["json"]))
        results = None
        try:
            folder.write_request(request)
            results, said = follow(folder, request, console)
            if options["json"]:
                self.stdout.write(results.model_dump_json(indent=1) if results else "")
            elif results:
                summary(results, console)
            if results is None:
                self.stderr.write(f"The harness ended without results. {said[-2000:]}".strip())
        except OSError as error:
            self.stderr.write(str(disk.full(error, settings.CC_CI.data_dir) or f"The run could not be started: {error}."))
        finally:
            trees.remove(folder.path.parent)
        verdict = results.verdict if results else Verdict.ERRORED
        raise Exit({Verdict.PASSED: 0, Verdict.FAILED: 1}.get(verdict, 2))

    def request(self, options: dict[str, Any]) -> Request:
        """What the options ask for. Raises CommandError with code 64 for what cannot be meant."""
        config, run_id = settings.CC_CI, uuid.uuid4().hex
        try:
            source = resolve(options["source"], options.get("ref", ""), options.get("sha", ""))
        except CheckoutError as error:
            raise CommandError(str(error), returncode=MISUSE) from error
        return Request(
            run_id=run_id,
            installation_id="local",
            recipe=Path(source.url.rstrip("/")).name.removesuffix(".git"),
            source=source,
            stages=chosen(options["stages"], options["extra_tests"], os.environ),
            deployer=options["deployer"],
            trusted=not options["untrusted"],
            domain=f"{stack_name(run_id)}.{config.domain}" if config.domain else "",
            proxy_url=config.proxy_url,
            keep=options["keep"],
            limits=limits(),
            **shared_of_machine(),
        )


def chosen(option: str, extra: bool, environ: Mapping[str, str]) -> list[str]:
    """The stages of a run, in the order in which they run: by option, else by STAGES and EXTRA_TESTS, else the usual ones.

    A list is exact. `extra`, or EXTRA_TESTS=1, adds the extra tests to it. Raises CommandError with code 64.
    """
    switch = environ.get("EXTRA_TESTS", "").strip().lower()
    if switch not in (*_YES, *_NO):
        raise CommandError(f"EXTRA_TESTS is {switch!r}.{_near(switch, (*_YES, *_NO[1:]))} Set it to 1 or 0.", returncode=MISUSE)
    given = option or environ.get("STAGES", "")
    wanted = {word.strip() for word in given.split(",") if word.strip()} or set(DEFAULT_STAGES)
    for word in sorted(wanted):
        if word not in STAGES:
            where = "" if option else " (STAGES, in the environment)"
            known = f"Stages: {', '.join(STAGES)}."
            raise CommandError(f"There is no stage {word!r}{where}.{_near(word, STAGES)} {known}", returncode=MISUSE)
    more = extra or switch in _YES
    return [stage for stage in STAGES if stage in wanted or (more and stage == "extra")]


def _near(word: str, words: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.3)
    return f" Did you mean {near[0]}?" if near else ""


def follow(folder: RunFolder, request: Request, console: Console) -> tuple[Results | None, str]:
    """Run the harness and show what it does: its results, and what it said where it has none.

    Ctrl-C asks it to stop and waits for its teardown. Should this process be killed, the harness tears down, and ends, too.
    """
    module = ["runs.harness.given"] if request.app_url else ["runs.harness", "run"]
    with os.fdopen(os.memfd_create("harness.err"), "w+b") as errors:  # the disk may be full
        harness = children.start(
            [sys.executable, "-m", *module, str(folder.path)],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            seconds=request.limits.run_seconds + _GRACE_SECONDS,
            grace=_GRACE_SECONDS,
            memory_mb=0,  # it bounds itself, and not what it starts
            alone=True,
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
        )
        assert harness.stdin
        with suppress(BrokenPipeError), harness.stdin:
            harness.stdin.write(json.dumps(shared_credential()).encode())
        interrupts = _Interrupts(folder, harness, console)
        try:
            with interrupts, _Display(request, console) as display:
                while harness.poll() is None:
                    display.show(folder)
                    with suppress(subprocess.TimeoutExpired):
                        harness.wait(0.1)
                display.show(folder)
        finally:
            children.end(harness, 2 * _GRACE_SECONDS)
        errors.seek(0)
        return folder.results(), errors.read().decode(errors="replace").strip()


class _Interrupts:
    """Turns Ctrl-C and SIGTERM into the wish to stop, for as long as the block lasts."""

    def __init__(self, folder: RunFolder, harness: subprocess.Popen[bytes], console: Console) -> None:
        self._folder = folder
        self._harness = harness
        self._console = console
        self._former: dict[int, Any] = {}

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if not self._folder.cancel.exists():
            try:
                self._folder.cancel.touch()
            except OSError:  # the disk is full
                self._harness.terminate()
            self._console.print("Stopping and tearing down…", style="yellow")

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


class _Display:
    """A line for each stage on a terminal; plain lines elsewhere."""

    def __init__(self, request: Request, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal and not console.quiet
        self._seen = 0
        self._began = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[name]:<8}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        for name in ["", *request.stages]:
            self._tasks[name] = self._progress.add_task("", total=None, visible=not name, name=name or "run")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, folder: RunFolder) -> None:
        for event in folder.events(self._seen):
            self._seen = event.seq
            self._show(event)

    def _show(self, event: Event) -> None:
        task = self._tasks.get(event.stage)
        if not self._live:
            if event.text:
                self._console.print(f"{event.at:%H:%M:%S} {event.stage:<8} {escape(event.text)}", highlight=False)
            return
        if task is None:
            return
        if event.kind == "warning":
            self._console.print(f"Warning: {escape(event.text)}", style="yellow")
        elif event.kind == "stage_started":
            self._progress.reset(task, visible=True)
        elif event.kind == "stage_finished":
            status = str(event.data.get("status", ""))
            colour = _COLOURS.get(status, "yellow")
            self._progress.update(task, total=1, completed=1, visible=True, description=f"[{colour}]{status}[/]")
        elif event.kind == "finished":
            self._progress.update(self._tasks[""], total=1, completed=1, description="")
        else:
            self._progress.update(task, description=escape(event.text[:80]))


def _findings(results: Results) -> Iterator[str]:
    """What else was seen, a line each."""
    for finding in results.lint:
        where = f"{finding.file}:{finding.line}: " if finding.line else f"{finding.file}: " if finding.file else ""
        yield f"Lint {finding.rule} ({finding.level}): {where}{finding.text}"
    if results.extras.not_run:
        count = results.extras.not_run
        yield f"{count} extra {'test was' if count == 1 else 'tests were'} not run: --extra-tests"
    if results.level.rungs:
        stopped = next((rung for rung in results.level.rungs if rung.status == "stopped"), None)
        yield f"Level {results.level.value} of 5" + (f"; {stopped.name} ended the climb: {stopped.reason}" if stopped else "")


def summary(results: Results, console: Console) -> None:
    """A table of the stages, then every failed test with its last lines, then the verdict."""
    table = Table("Stage", "Result", "Seconds", "Tests", "Why", box=None, pad_edge=False)
    for stage in results.stages:
        colour = _COLOURS.get(stage.status, "dim")
        good = sum(case.status == "passed" for case in stage.cases)
        tests = f"{good} of {len(stage.cases)}" if stage.cases else ""
        status = stage.status.replace("_", " ")
        table.add_row(stage.name, f"[{colour}]{status}[/]", f"{stage.seconds:.1f}", tests, escape(stage.reason))
    console.print(table)
    for stage in results.stages:
        for case in stage.cases:
            if case.status in ("failed", "errored"):
                console.print(f"\n{escape(case.file)}: {escape(case.name)}", style="red bold", highlight=False)
                for text in (case.message, *case.output.splitlines()[-15:]):
                    console.print(f"  {escape(text)}", highlight=False)
    for warning in (*results.warnings, *results.loosened):
        console.print(f"Warning: {escape(warning)}", style="yellow", highlight=False)
    for text in _findings(results):
        console.print(escape(text), highlight=False)
    seconds = (results.finished - results.started).total_seconds()
    colour, verdict = _COLOURS[results.verdict], results.verdict.replace("_", " ")
    console.print(f"\n[{colour} bold]{verdict}[/] in {seconds:.1f} s, {results.deployer or 'nothing deployed'}", highlight=False)
    if results.reason:
        console.print(escape(results.reason), highlight=False)
