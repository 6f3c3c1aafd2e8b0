"""Runs a recipe on this machine, without a forge or database: shared by `cc-ci run` and `cc-ci test`."""

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
from typing import Any, Protocol

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from controlplane.cli import MISUSE, Exit
from infra.deployers.context import stack_name
from infra.deployers.isolation import children, trees
from infra.git.runner import GitError
from runs.executors.local import harness_environment, limits, shared_credential, shared_of_machine
from runs.harness import disk_full
from runs.harness.checkout import resolve
from runs.harness.protocol import NOT_REACHED, Event, Request, Results, RunFolder, Source, Verdict
from runs.harness.stage_table import DEFAULT_STAGES, STAGES, in_order
from runs.render import once

#: Time for the harness's teardown after its time is up or its parent is gone.
_GRACE_SECONDS = 120.0
_COLOURS = {"passed": "green", "failed": "red", "errored": "red", "timed_out": "red", "cancelled": "yellow"}
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class LocalRun(BaseCommand):
    """Base of both commands. Each adds its own arguments, including `source`."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stages",
            default="",
            help=f"run exactly these, separated by commas, of: {', '.join(STAGES)} (or set STAGES in the environment)",
        )
        parser.add_argument("--extra-tests", action="store_true", help="also run the extra tests (or set EXTRA_TESTS=1)")
        parser.add_argument(
            "--from",
            dest="upgrade_from",
            default="",
            metavar="VERSION",
            help="the published version to upgrade from (default: the newest)",
        )
        parser.add_argument(
            "--tests",
            default="",
            metavar="FOLDER",
            help="also run the tests in FOLDER/tests/<recipe>/, which are kept apart from the recipe",
        )
        parser.add_argument("--deployer", choices=("auto", "swarm", "process"), default=settings.CC_CI.deployer)
        parser.add_argument("--untrusted", action="store_true", help="treat the recipe as a stranger's: run only in a sandbox")
        parser.add_argument("--keep", action="store_true", help="keep the deployment")
        parser.add_argument("--json", action="store_true", help="print only the results, as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        request = self.request(options)
        folder = RunFolder(settings.CC_CI.data_dir / "local-runs" / request.run_id / "1")
        console = Console(file=sys.stderr, quiet=bool(options["json"]))
        results = None
        try:
            folder.write_request(request)
            results, message = follow(folder, request, console)
            if options["json"]:
                self.stdout.write(results.model_dump_json(indent=1) if results else "")
            elif results:
                summary(results, console)
            if results is None:
                self.stderr.write(f"The harness ended without results. {message[-2000:]}".strip())
        except OSError as error:
            self.stderr.write(str(disk_full.full(error, settings.CC_CI.data_dir) or f"Could not start the run: {error}."))
        finally:
            trees.remove(folder.path.parent)
        verdict = results.verdict if results else Verdict.ERRORED
        raise Exit({Verdict.PASSED: 0, Verdict.FAILED: 1}.get(verdict, 2))

    def request(self, options: dict[str, Any]) -> Request:
        """The request for these options. Raises CommandError with code 64 for invalid ones."""
        config, run_id = settings.CC_CI, uuid.uuid4().hex
        try:
            source = resolve(options["source"], options.get("ref", ""), options.get("sha", ""))
        except GitError as error:
            raise CommandError(str(error), returncode=MISUSE) from error
        return Request(
            run_id=run_id,
            installation_id="local",
            recipe=recipe_of(source),
            source=source,
            tests=_tests(options["tests"], recipe_of(source)),
            stages=chosen(options["stages"], options["extra_tests"], os.environ),
            upgrade_from=options["upgrade_from"],
            deployer=options["deployer"],
            trusted=not options["untrusted"],
            domain=f"{stack_name(run_id)}.{config.domain}" if config.domain else "",
            proxy_url=config.proxy_url,
            keep=options["keep"],
            limits=limits(),
            **shared_of_machine(),
        )


def recipe_of(source: Source) -> str:
    """The recipe's name: that of its folder or repository."""
    return Path(source.url.rstrip("/")).name.removesuffix(".git")


def _tests(folder: str, recipe: str) -> Source | None:
    """The folder of separate tests, in its current state. Raises CommandError with code 64."""
    if not folder:
        return None
    path = Path(folder).expanduser().resolve()
    if not (path / "tests" / recipe).is_dir():
        raise CommandError(f"--tests {folder} has no folder tests/{recipe}.", returncode=MISUSE)
    return Source(url=str(path))


def chosen(option: str, extra: bool, environ: Mapping[str, str]) -> list[str]:
    """The stages to run, in order: from the option, else from STAGES and EXTRA_TESTS, else the default ones.

    A list is exact. `extra`, or EXTRA_TESTS=1, adds the extra tests. Raises CommandError with code 64.
    """
    switch = environ.get("EXTRA_TESTS", "").strip().lower()
    if switch not in (*_YES, *_NO):
        raise CommandError(
            f"Invalid EXTRA_TESTS {switch!r}.{_near(switch, (*_YES, *_NO[1:]))} Set it to 1 or 0.", returncode=MISUSE
        )
    given = option or environ.get("STAGES", "")
    wanted = {word.strip() for word in given.split(",") if word.strip()} or set(DEFAULT_STAGES)
    for word in sorted(wanted):
        if word not in STAGES:
            where = "" if option else " (from STAGES in the environment)"
            known = f"Stages: {', '.join(STAGES)}."
            raise CommandError(f"Unknown stage {word!r}{where}.{_near(word, STAGES)} {known}", returncode=MISUSE)
    return list(in_order(wanted | {"extra"} if extra or switch in _YES else wanted))


def _near(word: str, words: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.3)
    return f" Did you mean {near[0]}?" if near else ""


class Display(Protocol):
    """Shows a run's progress, inside the block."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, folder: RunFolder) -> None:
        """Show what is new in the folder."""


def follow(
    folder: RunFolder,
    request: Request,
    console: Console,
    display: Display | None = None,
    credential: Mapping[str, str] | None = None,
) -> tuple[Results | None, str]:
    """Run the harness and show its progress. Returns its results, and its output if there are none.

    `credential`: the secrets for it (default: those of this machine).
    Ctrl-C asks it to stop and waits for its teardown. If this process is killed, the harness tears down and ends too.
    """
    with os.fdopen(os.memfd_create("harness.err"), "w+b") as errors:  # the disk may be full
        harness = children.start(
            [sys.executable, "-m", "runs.harness", "run", str(folder.path)],
            env=harness_environment(),
            seconds=request.limits.longest + _GRACE_SECONDS,
            grace=_GRACE_SECONDS,
            memory_mb=0,  # it limits itself, but not its children
            alone=True,
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
        )
        assert harness.stdin
        with suppress(BrokenPipeError), harness.stdin:
            harness.stdin.write(json.dumps(shared_credential() if credential is None else credential).encode())
        interrupts = _Interrupts(folder, harness, console)
        try:
            with interrupts, (shown := display or _Display(request, console)):
                while harness.poll() is None:
                    shown.show(folder)
                    with suppress(subprocess.TimeoutExpired):
                        harness.wait(0.1)
                shown.show(folder)
        finally:
            children.end(harness, 2 * _GRACE_SECONDS)
        errors.seek(0)
        return folder.results(), errors.read().decode(errors="replace").strip()


class _Interrupts:
    """Turns Ctrl-C and SIGTERM into a request to stop, inside the block."""

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
    """Shows one line per stage on a terminal; plain lines elsewhere."""

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
            if event.text and event.kind != "finished":  # the summary comes next, and says it
                self._console.print(f"{event.at:%H:%M:%S} {event.stage:<8} {escape(event.text)}", highlight=False, soft_wrap=True)
            return
        if task is None:
            return
        if event.kind == "warning":
            self._console.print(f"Warning: {escape(event.text)}", style="yellow", soft_wrap=True)
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
    """The other findings, one line each."""
    for finding in results.lint:
        where = f"{finding.file}:{finding.line}: " if finding.line else f"{finding.file}: " if finding.file else ""
        yield f"Lint {finding.rule} ({finding.level}): {where}{finding.text}"
    if results.extras.not_run:
        count = results.extras.not_run
        yield f"{count} extra {'test was' if count == 1 else 'tests were'} not run; to run them: --extra-tests"
    if results.level:
        missed = next((rung for rung in results.level.rungs if rung.status in NOT_REACHED), None)
        why = f"; rung {missed.level}, {missed.name}, was not reached: {once(missed.reason, results.reason)}" if missed else ""
        yield f"Level {results.level.value} of 5{why}"


def summary(results: Results, console: Console) -> None:
    """A table of the stages, the failed tests with their last lines, and the verdict."""
    table = Table("Stage", "Result", "Seconds", "Tests", "Why", box=None, pad_edge=False)
    for stage in results.stages:
        colour = _COLOURS.get(stage.status, "dim")
        good = sum(case.status == "passed" for case in stage.cases)
        tests = f"{good} of {len(stage.cases)}" if stage.cases else ""
        status = stage.status.replace("_", " ")
        why = "see below" if stage.reason and stage.reason in results.reason else stage.reason
        table.add_row(stage.name, f"[{colour}]{status}[/]", f"{stage.seconds:.1f}", tests, escape(why))
    console.print(table)
    for stage in results.stages:
        for case in stage.cases:
            if case.status in ("failed", "errored"):
                console.print(f"\n{escape(case.file)}: {escape(case.name)}", style="red bold", highlight=False)
                for text in (case.message, *case.output.splitlines()[-15:]):
                    if text and text not in results.reason:  # which is printed below
                        console.print(f"  {escape(text)}", highlight=False)
    for warning in (*results.warnings, *results.loosened):
        # It may contain a line to copy.
        console.print(f"Warning: {escape(warning)}", style="yellow", highlight=False, soft_wrap=True)
    for text in _findings(results):
        console.print(escape(text), highlight=False)
    seconds = (results.finished - results.started).total_seconds()
    colour, verdict = _COLOURS[results.verdict], results.verdict.replace("_", " ")
    console.print(f"\n[{colour} bold]{verdict}[/] in {seconds:.1f} s, {results.deployer or 'nothing deployed'}", highlight=False)
    if results.reason:
        console.print(escape(results.reason), highlight=False)
