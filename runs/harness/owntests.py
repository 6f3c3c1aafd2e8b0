"""Runs a recipe's own pytest files and hooks in the sandbox: one process a stage or hook, results read with suspicion."""

from __future__ import annotations

import ast
import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.deployers import sandbox
from infra.deployers.base import Context, Deployer
from runs.harness import extras, junit
from runs.harness.events import Journal
from runs.harness.gate import Gate
from runs.harness.protocol import STAGES, CaseResult, StageResult
from runs.harness.watch import Watch

PLUGINS = Path(__file__).parent / "inside"
_GATE = "/run/cc-ci/gate.sock"

#: The functions that a recipe may define in its hooks' file.
HOOKS = (*(f"before_{stage}" for stage in STAGES), "write_marker", "read_marker")
HOOKS_FILE = "tests/cc_ci_hooks.py"
_BIGGEST_HOOKS = 256 << 10
_LONGEST_VALUE = 10_000

_INTERRUPTED, _INTERNAL, _USAGE, _NO_TESTS = 2, 3, 4, 5


@dataclass
class Outcome:
    """What became of a stage, or of the recipe's own part of it."""

    status: str
    reason: str = ""
    cases: Sequence[CaseResult] = ()
    proven: bool = True  #: False: it passed, and nothing shows that it did what it is for


def concluded(name: str, outcome: Outcome, seconds: float, started: datetime | None, journal: Journal) -> StageResult:
    """The result of a stage, with nothing in it that may not be told, and the event that says so. Leaves the stage."""
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
    said = f"Stage {name}: {outcome.status}" + (f". {outcome.reason}" if outcome.reason else "")
    journal.stage = name
    journal.event("stage_finished", said, status=outcome.status, seconds=result.seconds)
    journal.stage = ""
    return result


@dataclass(frozen=True)
class HookResult:
    """What became of a hook. `ran` is false where the recipe has none; `ok` is false when it raised, by `reason`."""

    ran: bool
    ok: bool
    value: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Ended:
    """A program of the recipe that has ended: its exit code, the file that it left, whether it wanted too much memory."""

    code: int
    data: bytes
    out_of_memory: bool


def find(checkout: Path, stage: str) -> list[str]:
    """The recipe's test files that pytest is given for a stage, as paths in the checkout.

    `tests/**/test_<stage>.py` goes with that stage; what lies under a folder `extra`, in `tests` or beside it, with the extra
    tests; all others with custom. A file that has the mark `extra` somewhere is given to the stage extra, too: within a
    file, the plugin keeps for each stage its own tests.
    """
    tests, helpers = extras.files(checkout)
    if stage != "extra":
        return [str(path) for path in tests if not extras.is_extra(path) and _stage_of(path) == stage]
    # A mark that is made in a conftest.py can be used anywhere.
    anywhere = any(extras.mentioned(checkout, path) for path in helpers)
    return [str(path) for path in tests if anywhere or extras.is_extra(path) or extras.mentioned(checkout, path)]


def _stage_of(path: Path) -> str:
    name = path.stem.removeprefix("test_")
    return name if name in STAGES else "custom"


def marker(context: Context) -> str:
    """The value of the run's marker: the same in all its stages, and nobody else's."""
    return f"cc-ci-{hashlib.sha256(f'marker {context.run_id}'.encode()).hexdigest()[:16]}"


def run(
    stage: str, files: Sequence[str], context: Context, deployer: Deployer, journal: Journal, watch: Watch, folder: Path
) -> Outcome:
    """Run `files` with pytest and read what came of it. Raises Cancelled and TimedOut, with nothing left running."""
    if not files:  # pytest itself would then run whatever it finds
        return Outcome("not_applicable", "The recipe has no tests for this stage.")
    place = _place(stage, context)
    results = f"{place.home}/junit.xml"
    command = [
        *["-m", "pytest", "-p", "cc_ci_plugin", "-p", "no:cacheprovider", "-ra", "--tb=short", "--color=no"],
        *["-o", "junit_family=xunit1", "--rootdir={folder}", f"--junitxml={results}", *files],
    ]
    environment = {"CC_CI_STAGE": stage}
    if stage == "extra":
        environment["CC_CI_EXTRA_FILES"] = "\n".join(file for file in files if extras.is_extra(Path(file)))
    ended = _inside(place, command, environment, results, context, deployer, journal, watch)
    if ended.data:
        name = f"junit-{stage}.xml"
        text = ended.data[: junit.BIGGEST].decode(errors="replace")
        (folder / name).write_text(journal.clean(text, name))
    return judge(ended.code, ended.data, ended.out_of_memory)


def hooks(checkout: Path) -> set[str]:
    """The hooks that the recipe defines, found without running anything; none in a file that cannot be read."""
    data = _hooks_file(checkout)
    try:
        body = ast.parse(data).body if data else []
    except (SyntaxError, ValueError, LookupError, OverflowError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name in HOOKS}


def _hooks_file(checkout: Path) -> bytes:
    data = extras.read(checkout, Path(HOOKS_FILE), _BIGGEST_HOOKS + 1) or b""
    return data if len(data) <= _BIGGEST_HOOKS else b""


def hook(
    name: str, context: Context, deployer: Deployer, journal: Journal, watch: Watch, folder: Path, value: str = ""
) -> HookResult:
    """Call the function `name` of the recipe's hooks with the app and `value`, in the tests' sandbox.

    A hook that the recipe does not define is none that ran, and well. One that raises is the recipe's failure. Its text goes to
    the log, and, when it raised, to `hook-<name>.txt` in `folder`. Raises Cancelled and TimedOut.
    """
    if name not in hooks(context.checkout):
        return HookResult(ran=False, ok=True)
    journal.step(f"Running the recipe's hook {name}")
    place = _place(f"hook-{name.replace('_', '-')}", context)
    result = f"{place.home}/hook.json"
    command = ["-P", "-m", "cc_ci_plugin.hook", name, value, result]
    ended = _inside(place, command, {}, result, context, deployer, journal, watch)
    done = judge_hook(name, ended.code, ended.data, ended.out_of_memory)
    if not done.ok:
        file = f"hook-{name}.txt"
        (folder / file).write_text(journal.clean(done.reason + "\n", file))
    return done


def judge_hook(name: str, code: int, data: bytes, out_of_memory: bool = False) -> HookResult:
    """What a hook's exit code and its result say together. Pure."""
    if out_of_memory:
        return HookResult(True, False, reason=f"The hook {name} used more memory than it may and was ended.")
    try:
        answer = json.loads(data[: junit.BIGGEST])
        given, error = answer.get("value", ""), answer.get("error", "")
        if not isinstance(given, str) or not isinstance(error, str):
            raise TypeError
    except (ValueError, TypeError, AttributeError, RecursionError):
        return HookResult(True, False, reason=f"The hook {name} ended with exit code {code} and left no result: see the log.")
    if error or code:
        said = error.strip()[-2000:] or f"exit code {code}"
        return HookResult(True, False, reason=f"The hook {name} of {HOOKS_FILE} failed: {said}")
    if len(given) > _LONGEST_VALUE:
        return HookResult(True, False, reason=f"The hook {name} gave {len(given)} characters, more than {_LONGEST_VALUE}.")
    return HookResult(True, True, given)


def _inside(
    place: sandbox.Sandbox,
    command: Sequence[str],
    environment: Mapping[str, str],
    result: str,
    context: Context,
    deployer: Deployer,
    journal: Journal,
    watch: Watch,
) -> _Ended:
    """Run Python with these arguments beside the gate, until it ends or `watch` ends it. `result` is the file to hand out."""
    result_out, result_in = os.pipe()
    collected: list[bytes] = []
    with Gate(context.work / "gate.sock", deployer, context.domain):
        config = _config(place, command, environment, context, deployer) | {"result": result, "result_fd": result_in}
        try:
            box = place.start("runner.py", config, (result_in,))
        finally:
            os.close(result_in)
        readers = [
            threading.Thread(target=_read_output, args=(box, journal), daemon=True),
            threading.Thread(target=_read_result, args=(result_out, collected), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            code = _wait(box, watch)
            memory = bool(place.cgroup and place.cgroup.out_of_memory())
        finally:
            place.end(box)
        for reader in readers:
            reader.join(timeout=5)
    return _Ended(code, b"".join(collected), memory)


def _place(name: str, context: Context) -> sandbox.Sandbox:
    scratch = context.work / f"tests-{name}"
    scratch.mkdir(exist_ok=True)
    return sandbox.Sandbox(
        f"{context.stack}-{name}",
        bubblewrap=sandbox.available().ok,
        mounts={
            "/recipe": context.checkout,
            _GATE: context.work / "gate.sock",
            f"{sandbox.PROGRAMS}/plugins": PLUGINS,
        },
        hosts=[context.domain] if context.domain else [],
        memory_mb=context.memory_mb,
        processes=context.processes,
        disk_mb=context.disk_mb,
        scratch=scratch,
    )


def _config(
    place: sandbox.Sandbox, command: Sequence[str], environment: Mapping[str, str], context: Context, deployer: Deployer
) -> dict[str, object]:
    gate = place.where(_GATE)
    python = str(Path(sys.prefix) / "bin" / "python") if sys.prefix != sys.base_prefix else sandbox.interpreter()
    chromium = os.environ.get("CC_CI_CHROMIUM", "")
    # By its name, on the port of the web: only there, and where the name is one.
    ports = [80, 0] if place.bubblewrap and context.domain and not _is_address(context.domain) else [0]
    return {
        "command": [python, *command],
        "env": {
            **place.environment(),
            "PYTHONPATH": place.where(f"{sandbox.PROGRAMS}/plugins"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "CC_CI_URL": "{url}",
            "CC_CI_DOMAIN": context.domain,
            "CC_CI_GATE": gate,
            "CC_CI_RECIPE": context.recipe,
            "CC_CI_MARKER": marker(context),
            **context.lent,
            **({"CC_CI_CHROMIUM": chromium} if chromium else {}),
            **environment,
        },
        "source": place.where("/recipe"),
        "home": place.home,
        "host": context.domain,
        "ports": ports if deployer.address() else [],
        "gate": gate,
        "biggest": junit.BIGGEST,
    }


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _wait(box: subprocess.Popen[bytes], watch: Watch) -> int:
    wait = 0.01
    while (code := box.poll()) is None:
        watch.check()
        time.sleep(wait)
        wait = min(wait * 1.5, 0.2)
    return code


def _read_output(box: subprocess.Popen[bytes], journal: Journal) -> None:
    assert box.stdout
    while line := box.stdout.readline(8192):
        journal.log(line.decode(errors="replace").rstrip("\n"))


def _read_result(handle: int, collected: list[bytes]) -> None:
    left = junit.BIGGEST + 1
    with os.fdopen(handle, "rb") as result:
        while left > 0 and (block := result.read1(min(left, 1 << 16))):
            left -= len(block)
            collected.append(block)


def judge(code: int, data: bytes, out_of_memory: bool = False) -> Outcome:
    """What pytest's exit code and its JUnit file say together. Passed needs both to agree. Pure."""
    if out_of_memory:
        return Outcome("failed", "The tests used more memory than they may and were ended.")
    try:
        cases = junit.parse(data) if data else []
    except junit.BadJUnit as error:
        return Outcome("failed", f"The tests left unusable results: {error}")
    bad = [case for case in cases if case.status in ("failed", "errored")]
    if code == _NO_TESTS and not cases:
        return Outcome("not_applicable", "The recipe's test files have no tests for this stage.")
    if bad:
        names = ", ".join(case.name for case in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        said = "could not be collected" if code == _INTERRUPTED else "failed"
        return Outcome("failed", f"{len(bad)} of {len(cases)} tests {said}: {names}.", cases)
    if code == 0 and any(case.status == "passed" for case in cases):
        return Outcome("passed", "", cases)
    if code == 0 and cases:
        return Outcome("not_applicable", "All tests of the recipe were skipped.", cases)
    if code == 0:
        return Outcome("failed", "pytest ended without writing its results, so nothing shows that a test ran.")
    if code == _USAGE:
        return Outcome("failed", "pytest could not load the tests (conftest.py or its configuration): see the log.")
    if code == _INTERNAL:
        return Outcome("failed", "pytest itself failed on these tests: see the log.", cases)
    if code > 128 or code < 0:
        number = code - 128 if code > 128 else -code
        return Outcome("failed", f"The tests were ended by signal {number} (a limit, or their own doing).", cases)
    return Outcome("failed", f"pytest ended with exit code {code}, but its results name no failed test.", cases)
