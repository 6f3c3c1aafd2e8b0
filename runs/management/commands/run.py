"""`cc-ci run PATH_OR_URL`: a whole run on this machine, with no forge and no database."""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from argparse import ArgumentParser
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
from infra.deployers.base import stack_name
from runs.harness.checkout import resolve
from runs.harness.git import CheckoutError
from runs.harness.protocol import STAGES, Event, Limits, Request, Results, RunFolder, Verdict

#: What the harness may see of our environment: no setting, no secret.
_PASSED_ON = ("PATH", "HOME", "LANG", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
_COLOURS = {"passed": "green", "failed": "red", "errored": "red", "timed_out": "red", "cancelled": "yellow"}


class Command(BaseCommand):
    help = "Test a recipe from a folder or a clone URL, here and now, without a forge."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", metavar="PATH_OR_URL", help="the recipe's folder, or where to clone it from")
        parser.add_argument("--sha", default="", help="the commit, 40 hex digits; a folder is taken as it is without it")
        parser.add_argument("--ref", default="", help="a branch, tag or refs/pull/N/head")
        parser.add_argument("--stages", default="", help=f"by commas, of: {', '.join(STAGES)}")
        parser.add_argument("--extra-tests", action="store_true", help="run the tests under tests/extra too")
        parser.add_argument("--deployer", choices=("auto", "swarm", "process", "abra"), default=settings.CC_CI.deployer)
        parser.add_argument("--untrusted", action="store_true", help="treat the recipe as a stranger's: a sandbox or nothing")
        parser.add_argument("--keep", action="store_true", help="leave the deployment there")
        parser.add_argument("--json", action="store_true", help="print only the results, as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        request = self.request(options)
        folder = RunFolder(settings.CC_CI.data_dir / "local-runs" / request.run_id / "1")
        folder.write_request(request)
        console = Console(file=sys.stderr, quiet=bool(options["json"]))
        try:
            results = follow(folder, request, console)
            if options["json"]:
                self.stdout.write(results.model_dump_json(indent=1) if results else "")
            elif results:
                summary(results, console)
            if results is None:
                errors = folder.path / "harness.err"
                said = errors.read_text(errors="replace").strip() if errors.exists() else ""
                console.print(f"The harness ended without results. {escape(said[-2000:])}", style="red")
        finally:
            shutil.rmtree(folder.path.parent, ignore_errors=True)
        verdict = results.verdict if results else Verdict.ERRORED
        raise Exit({Verdict.PASSED: 0, Verdict.FAILED: 1}.get(verdict, 2))

    def request(self, options: dict[str, Any]) -> Request:
        """What the options ask for. Raises CommandError with code 64 for what cannot be meant."""
        config, run_id = settings.CC_CI, uuid.uuid4().hex
        try:
            source = resolve(options["source"], options["ref"], options["sha"])
        except CheckoutError as error:
            raise CommandError(str(error), returncode=MISUSE) from error
        return Request(
            run_id=run_id,
            installation_id="local",
            recipe=Path(source.url.rstrip("/")).name.removesuffix(".git"),
            source=source,
            stages=stages(options["stages"], options["extra_tests"]),
            deployer=options["deployer"],
            trusted=not options["untrusted"],
            domain=f"{stack_name(run_id)}.{config.domain}" if config.domain else "",
            proxy_url=config.proxy_url,
            keep=options["keep"],
            limits=Limits(
                run_seconds=config.run_seconds,
                stage_seconds=config.stage_seconds,
                memory_mb=config.memory_mb,
                processes=config.processes,
                disk_mb=config.disk_mb,
            ),
        )


def stages(text: str, extra: bool) -> list[str]:
    """The stages that `--stages` and `--extra-tests` name, in the order in which they run."""
    wanted = {word.strip() for word in text.split(",") if word.strip()} or set(STAGES) - {"extra"}
    for word in sorted(wanted):
        if word not in STAGES:
            near = difflib.get_close_matches(word, STAGES, n=1, cutoff=0.3)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise CommandError(f"There is no stage {word!r}.{meant} Stages: {', '.join(STAGES)}.", returncode=MISUSE)
    return [stage for stage in STAGES if stage in wanted or (extra and stage == "extra")]


def follow(folder: RunFolder, request: Request, console: Console) -> Results | None:
    """Run the harness and show what it does. Ctrl-C asks it to stop and waits for its teardown."""
    with (folder.path / "harness.err").open("w") as errors:
        # A session of its own: Ctrl-C at the terminal reaches us, and docker and git of the harness end their work.
        harness = subprocess.Popen(
            [sys.executable, "-m", "runs.harness", "run", str(folder.path)],
            cwd=settings.BASE_DIR,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    interrupts = _Interrupts(folder, console)
    with interrupts, _Display(request, console) as display:
        while harness.poll() is None:
            display.show(folder)
            with suppress(subprocess.TimeoutExpired):
                harness.wait(0.1)
        display.show(folder)
    return folder.results()


class _Interrupts:
    """Turns Ctrl-C and SIGTERM into the wish to stop, for as long as the block lasts."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self._folder = folder
        self._console = console
        self._former: dict[int, Any] = {}

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if not self._folder.cancel.exists():
            self._folder.cancel.touch()
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
    for warning in results.warnings:
        console.print(f"Warning: {escape(warning)}", style="yellow", highlight=False)
    seconds = (results.finished - results.started).total_seconds()
    colour, verdict = _COLOURS[results.verdict], results.verdict.replace("_", " ")
    console.print(f"\n[{colour} bold]{verdict}[/] in {seconds:.1f} s, {results.deployer or 'nothing deployed'}", highlight=False)
    if results.reason:
        console.print(escape(results.reason), highlight=False)
