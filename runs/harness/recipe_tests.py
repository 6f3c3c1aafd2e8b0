"""Runs a recipe's own pytest files and hooks in the sandbox: one process per stage or hook, whose results are untrusted."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.deployers import messages
from infra.deployers.base import Deployer
from infra.deployers.context import Context
from infra.deployers.isolation import bubblewrap
from runs.harness import extra_tests, junit
from runs.harness.browser import chromium, needs
from runs.harness.deadlines import Deadlines
from runs.harness.doors import CERTIFICATES, Doors
from runs.harness.events import Journal
from runs.harness.protocol import CaseResult, StageResult
from runs.harness.sandbox_gateway import SandboxGateway
from runs.harness.stage_table import STAGES

PLUGINS = Path(__file__).parent / "guest"
_GATE = "/run/cc-ci/gate.sock"

#: Functions that a recipe may define in its hooks file.
HOOKS = (*(f"before_{stage}" for stage in STAGES), "write_marker", "read_marker")
HOOKS_FILE = "tests/cc_ci_hooks.py"
_BIGGEST_HOOKS = 256 << 10
_LONGEST_VALUE = 10_000

#: How pytest begins lines about its own errors: usage, a conftest.py, and each line of what was raised.
_ERROR_LINE = re.compile(r"ERROR: (?!usage)|ImportError while loading|E  |[\w./ -]{1,200}: error: |\S{1,200}Error: ")
_KEPT_LINES, _SHOWN_LINES = 60, 8

_INTERRUPTED, _INTERNAL, _USAGE, _NO_TESTS = 2, 3, 4, 5


@dataclass
class Outcome:
    """The outcome of a stage, or of the recipe's own part of it."""

    status: str
    reason: str = ""
    cases: Sequence[CaseResult] = ()
    proven: bool = True  #: False: it passed, but nothing shows that it worked


def concluded(name: str, outcome: Outcome, seconds: float, started: datetime | None, journal: Journal) -> StageResult:
    """The redacted result of a stage, and its event. Leaves the stage."""
    clean = journal.clean
    cases = [
        case.model_copy(update={key: clean(getattr(case, key)) for key in ("name", "file", "message", "output")})
        for case in outcome.cases
    ]
    result = StageResult.model_validate(
        {
            "name": name,
            "status": outcome.status,
            "reason": clean(outcome.reason),
            "proven": outcome.proven,
            "seconds": round(seconds, 3),
            "started": started,
            "finished": datetime.now(UTC) if started else None,
            "cases": cases,
        }
    )
    message = f"Stage {name}: {outcome.status}" + (f". {outcome.reason}" if outcome.reason else "")
    journal.stage = name
    journal.event("stage_finished", message, status=outcome.status, seconds=result.seconds)
    journal.stage = ""
    return result


@dataclass(frozen=True)
class HookResult:
    """The outcome of a hook. `ran` is false if the recipe has none; `ok` is false if it raised, with the `reason`."""

    ran: bool
    ok: bool
    value: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Ended:
    """A finished program of the recipe: its exit code, its result file, whether it exceeded its memory."""

    code: int
    data: bytes
    out_of_memory: bool
    printed: Sequence[str] = ()  #: the last lines it printed


def find(checkout: Path, stage: str) -> list[str]:
    """The recipe's test files to give pytest for a stage, as paths in the checkout.

    `tests/**/test_<stage>.py` belongs to that stage; files under a folder `extra`, in `tests` or beside it, to the extra
    tests; all others to custom. A file that has the mark `extra` anywhere is given to the stage extra too: within a
    file, the plugin keeps only the tests of the stage.
    """
    tests, helpers = extra_tests.files(checkout)
    if stage != "extra":
        return [str(path) for path in tests if not extra_tests.is_extra(path) and _stage_of(path) == stage]
    # A mark defined in a conftest.py can be used anywhere.
    anywhere = any(extra_tests.mentioned(checkout, path) for path in helpers)
    return [str(path) for path in tests if anywhere or extra_tests.is_extra(path) or extra_tests.mentioned(checkout, path)]


def _stage_of(path: Path) -> str:
    name = path.stem.removeprefix("test_")
    return name if name in STAGES else "custom"


def marker(context: Context) -> str:
    """The value of the run's marker: the same in all its stages, and unique to the run."""
    return f"cc-ci-{hashlib.sha256(f'marker {context.run_id}'.encode()).hexdigest()[:16]}"


def run(
    stage: str,
    files: Sequence[str],
    context: Context,
    deployer: Deployer,
    journal: Journal,
    deadlines: Deadlines,
    folder: Path,
    label: str = "",
) -> Outcome:
    """Run `files` with pytest and read the results. Raises Cancelled and TimedOut, leaving nothing running.

    `label` precedes the stage's name in file and folder names, if a stage has two such runs.
    """
    if not files:  # pytest itself would then run whatever it finds
        return Outcome("not_applicable", "The recipe has no tests for this stage.")
    place = _place(f"{label}{stage}", context)
    results = f"{place.home}/junit.xml"
    command = [
        *["-m", "pytest", "-p", "cc_ci_plugin", "-p", "no:cacheprovider", "-ra", "--tb=short", "--color=no"],
        *["-o", "junit_family=xunit1", "--rootdir={folder}", f"--junitxml={results}", *files],
    ]
    environment = {"CC_CI_STAGE": stage}
    if stage == "extra":
        environment["CC_CI_EXTRA_FILES"] = "\n".join(file for file in files if extra_tests.is_extra(Path(file)))
    ended = _inside(place, command, environment, results, context, deployer, journal, deadlines)
    if ended.data:
        name = f"junit-{label}{stage}.xml"
        text = ended.data[: junit.BIGGEST].decode(errors="replace")
        (folder / name).write_text(journal.clean(text, name))
    return judge(ended.code, ended.data, ended.out_of_memory, ended.printed)


def hooks(checkout: Path) -> set[str]:
    """The hooks that the recipe defines, found without running anything; none if the file cannot be read."""
    data = _hooks_file(checkout)
    try:
        body = ast.parse(data).body if data else []
    except (SyntaxError, ValueError, LookupError, OverflowError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name in HOOKS}


def _hooks_file(checkout: Path) -> bytes:
    data = extra_tests.read(checkout, Path(HOOKS_FILE), _BIGGEST_HOOKS + 1) or b""
    return data if len(data) <= _BIGGEST_HOOKS else b""


def hook(
    name: str,
    context: Context,
    deployer: Deployer,
    journal: Journal,
    deadlines: Deadlines,
    folder: Path,
    value: str = "",
    whose: str = "the recipe's",
) -> HookResult:
    """Call the function `name` of the recipe's hooks with the app and `value`, in the tests' sandbox.

    A hook that is not defined counts as not run, and as ok. One that raises is the recipe's failure. Its output goes to the log
    and, if it raised, to `hook-<name>.txt` in `folder`. Raises Cancelled and TimedOut.
    """
    if name not in hooks(context.checkout):
        return HookResult(ran=False, ok=True)
    journal.step(f"Running {whose} hook {name}")
    place = _place(f"hook-{name.replace('_', '-')}", context)
    result = f"{place.home}/hook.json"
    command = ["-P", "-m", "cc_ci_plugin.hook", name, value, result]
    ended = _inside(place, command, {}, result, context, deployer, journal, deadlines)
    done = judge_hook(name, ended.code, ended.data, ended.out_of_memory)
    if not done.ok:
        file = f"hook-{name}.txt"
        (folder / file).write_text(journal.clean(done.reason + "\n", file))
    return done


def judge_hook(name: str, code: int, data: bytes, out_of_memory: bool = False) -> HookResult:
    """Combines a hook's exit code and result. Pure."""
    if out_of_memory:
        return HookResult(True, False, reason=f"The hook {name} exceeded its memory limit and was killed.")
    try:
        answer = json.loads(data[: junit.BIGGEST])
        given, error = answer.get("value", ""), answer.get("error", "")
        if not isinstance(given, str) or not isinstance(error, str):
            raise TypeError
    except (ValueError, TypeError, AttributeError, RecursionError):
        return HookResult(True, False, reason=f"The hook {name} exited with code {code} and left no result: see the log.")
    if error or code:
        message = error.strip()[-2000:] or f"exit code {code}"
        return HookResult(True, False, reason=f"The hook {name} of {HOOKS_FILE} failed: {message}")
    if len(given) > _LONGEST_VALUE:
        return HookResult(True, False, reason=f"The hook {name} returned {len(given)} characters, more than {_LONGEST_VALUE}.")
    return HookResult(True, True, given)


def _inside(
    place: bubblewrap.Sandbox,
    command: Sequence[str],
    environment: Mapping[str, str],
    result: str,
    context: Context,
    deployer: Deployer,
    journal: Journal,
    deadlines: Deadlines,
) -> _Ended:
    """Run Python with these arguments beside the gateway, until it ends or `deadlines` ends it. `result`: the file to return."""
    result_out, result_in = os.pipe()
    collected: list[bytes] = []
    printed: deque[str] = deque(maxlen=_KEPT_LINES)
    doors = Doors.of(context, deployer.address(), place.bubblewrap)
    place.hosts, place.places, place.addresses = doors.hosts, doors.places, doors.addresses
    place.mounts = {**place.mounts, CERTIFICATES: doors.trust(context.work)}
    with SandboxGateway(context.work / "gate.sock", deployer, context.domain, doors):
        config = _config(place, command, environment, context, doors) | {"result": result, "result_fd": result_in}
        try:
            box = place.start("runner.py", config, (result_in,))
        finally:
            os.close(result_in)
        readers = [
            threading.Thread(target=_read_output, args=(box, journal, printed), daemon=True),
            threading.Thread(target=_read_result, args=(result_out, collected), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            code = _wait(box, deadlines)
            memory = bool(place.cgroup and place.cgroup.out_of_memory())
        finally:
            place.end(box)
        for reader in readers:
            reader.join(timeout=5)
    return _Ended(code, b"".join(collected), memory, list(printed))


def _place(name: str, context: Context) -> bubblewrap.Sandbox:
    scratch = context.work / f"tests-{name}"
    scratch.mkdir(exist_ok=True)
    return bubblewrap.Sandbox(
        f"{context.stack}-{name}",
        bubblewrap=bubblewrap.available().ok,
        mounts={
            "/recipe": context.checkout,
            _GATE: context.work / "gate.sock",
            f"{bubblewrap.PROGRAMS}/plugins": PLUGINS,
            **(needs(browser) if (browser := chromium()) else {}),
        },
        memory_mb=context.memory_mb,
        processes=context.processes,
        disk_mb=context.disk_mb,
        scratch=scratch,
    )


def _config(
    place: bubblewrap.Sandbox, command: Sequence[str], environment: Mapping[str, str], context: Context, doors: Doors
) -> dict[str, object]:
    gate = place.where(_GATE)
    python = str(Path(sys.prefix) / "bin" / "python") if sys.prefix != sys.base_prefix else bubblewrap.interpreter()
    browser = chromium()
    # A missing one is named, too: the test says what is to be done.
    browser = os.path.realpath(browser) if browser and place.bubblewrap else browser or os.environ.get("CC_CI_CHROMIUM", "")
    return {
        "command": [python, *command],
        "env": {
            **place.environment(),
            **doors.environment(place.where(CERTIFICATES)),
            "PYTHONPATH": place.where(f"{bubblewrap.PROGRAMS}/plugins"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "CC_CI_URL": "{url}",
            "CC_CI_DOMAIN": context.domain,
            "CC_CI_GATE": gate,
            "CC_CI_RECIPE": context.recipe,
            "CC_CI_MARKER": marker(context),
            **context.lent,
            **({"CC_CI_CHROMIUM": browser} if browser else {}),
            **environment,
        },
        "source": place.where("/recipe"),
        "home": place.home,
        "doors": doors.config(),
        "gate": gate,
        "biggest": junit.BIGGEST,
    }


def _wait(box: subprocess.Popen[bytes], deadlines: Deadlines) -> int:
    wait = 0.01
    while (code := box.poll()) is None:
        deadlines.check()
        time.sleep(wait)
        wait = min(wait * 1.5, 0.2)
    return code


def _read_output(box: subprocess.Popen[bytes], journal: Journal, printed: deque[str]) -> None:
    assert box.stdout
    while line := box.stdout.readline(8192):
        text = line.decode(errors="replace").rstrip("\n")
        printed.append(text)
        journal.log(text)


def _read_result(handle: int, collected: list[bytes]) -> None:
    left = junit.BIGGEST + 1
    with os.fdopen(handle, "rb") as result:
        while left > 0 and (block := result.read1(min(left, 1 << 16))):
            left -= len(block)
            collected.append(block)


def pytest_message(printed: Sequence[str]) -> str:
    """The lines in which pytest says why it ran no test: those marked as errors, else the last ones. Pure."""
    lines = [line.removeprefix("INTERNALERROR> ") for line in printed if line.startswith("INTERNALERROR>")] or printed
    lines = ([line for line in lines if _ERROR_LINE.match(line)] or [line for line in lines if line.strip()])[-_SHOWN_LINES:]
    return "\n".join(line.strip()[:500] for line in lines) or "it printed nothing."


def judge(code: int, data: bytes, out_of_memory: bool = False, message: Sequence[str] = ()) -> Outcome:
    """Combines pytest's exit code and its JUnit file: passed requires both to agree. Pure.

    `message`: the last lines it printed, for what is not in a JUnit file.
    """
    if out_of_memory:
        return Outcome("failed", "The tests exceeded their memory limit and were killed.")
    try:
        cases = junit.parse(data) if data else []
    except junit.BadJUnit as error:
        return Outcome("failed", f"The tests left invalid results: {error}")
    bad = [case for case in cases if case.status in ("failed", "errored")]
    if code == _INTERNAL:
        return Outcome("failed", f"pytest itself failed on these tests: {pytest_message(message)}", cases)
    if code == _NO_TESTS and not cases:
        return Outcome("not_applicable", "The recipe's test files contain no tests for this stage.", proven=False)
    if bad:
        names = messages.some([case.name for case in bad], 3)
        message = "could not be collected" if code == _INTERRUPTED else "failed"
        return Outcome("failed", f"{len(bad)} of {len(cases)} tests {message}: {names}.", cases)
    if code == 0 and any(case.status == "passed" for case in cases):
        return Outcome("passed", "", cases)
    if code == 0 and cases:
        return Outcome("not_applicable", "All tests of the recipe were skipped.", cases)
    if code == 0:
        return Outcome("failed", "pytest exited without writing its results, so nothing shows that a test ran.")
    if code == _USAGE:
        return Outcome("failed", f"pytest could not load the tests (conftest.py or its configuration): {pytest_message(message)}")
    if code > 128 or code < 0:
        number = code - 128 if code > 128 else -code
        return Outcome("failed", f"The tests were killed by signal {number} (a limit, or their own doing).", cases)
    return Outcome("failed", f"pytest exited with code {code}, but its results name no failed test.", cases)
