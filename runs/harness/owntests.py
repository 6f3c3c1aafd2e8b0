"""Runs a recipe's own pytest files in the sandbox: one pytest process a stage, results as JUnit XML."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.deployers import sandbox
from infra.deployers.base import Context, Deployer
from runs.harness import junit
from runs.harness.events import Journal
from runs.harness.gate import Gate
from runs.harness.protocol import STAGES, CaseResult
from runs.harness.watch import Watch

PLUGINS = Path(__file__).parent / "inside"
_GATE = "/run/cc-ci/gate.sock"

_INTERRUPTED, _INTERNAL, _USAGE, _NO_TESTS = 2, 3, 4, 5


@dataclass
class Outcome:
    """What became of a stage, or of the recipe's own part of it."""

    status: str
    reason: str = ""
    cases: Sequence[CaseResult] = ()


def find(checkout: Path, stage: str) -> list[str]:
    """The recipe's test files that belong to a stage, as paths in the checkout.

    `tests/**/test_<stage>.py` goes with that stage, files under a folder `extra` with the extra tests, all others with
    custom.
    """
    found = []
    for folder, folders, files in os.walk(checkout / "tests"):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for file in sorted(files):
            if file.startswith("test_") and file.endswith(".py"):
                path = Path(folder, file).relative_to(checkout)
                if _stage_of(path) == stage:
                    found.append(str(path))
    return sorted(found)


def _stage_of(path: Path) -> str:
    if "extra" in path.parts[1:-1]:
        return "extra"
    name = path.stem.removeprefix("test_")
    return name if name in STAGES else "custom"


def run(
    stage: str, files: Sequence[str], context: Context, deployer: Deployer, journal: Journal, watch: Watch, folder: Path
) -> Outcome:
    """Run `files` with pytest and read what came of it. Raises Cancelled and TimedOut, with nothing left running."""
    place = _place(stage, context)
    result_out, result_in = os.pipe()
    collected: list[bytes] = []
    with Gate(context.work / "gate.sock", deployer, context.domain):
        try:
            box = place.start("runner.py", _config(place, files, context, deployer, result_in), (result_in,))
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
    data = b"".join(collected)
    if data:
        (folder / f"junit-{stage}.xml").write_bytes(data[: junit.BIGGEST])
    return judge(code, data, memory)


def _place(stage: str, context: Context) -> sandbox.Sandbox:
    scratch = context.work / f"tests-{stage}"
    scratch.mkdir(exist_ok=True)
    return sandbox.Sandbox(
        f"{context.stack}-{stage}",
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
    place: sandbox.Sandbox, files: Sequence[str], context: Context, deployer: Deployer, result_fd: int
) -> dict[str, object]:
    gate = place.where(_GATE)
    return {
        "command": [
            str(Path(sys.prefix) / "bin" / "python") if sys.prefix != sys.base_prefix else sandbox.interpreter(),
            *["-m", "pytest", "-p", "cc_ci_plugin", "-p", "no:cacheprovider", "-ra", "--tb=short", "--color=no"],
            *["-o", "junit_family=xunit1", "--rootdir={folder}"],
            f"--junitxml={place.home}/junit.xml",
            *files,
        ],
        "env": {
            **place.environment(),
            "PYTHONPATH": place.where(f"{sandbox.PROGRAMS}/plugins"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "CC_CI_URL": "{url}",
            "CC_CI_DOMAIN": context.domain,
            "CC_CI_GATE": gate,
            "CC_CI_RECIPE": context.recipe,
        },
        "source": place.where("/recipe"),
        "home": place.home,
        "host": context.domain,
        "ports": ([80, 0] if place.bubblewrap and context.domain else [0]) if deployer.address() else [],
        "gate": gate,
        "result": f"{place.home}/junit.xml",
        "result_fd": result_fd,
        "biggest": junit.BIGGEST,
    }


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
        return Outcome("not_applicable", "The recipe's test files have no tests in them.")
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
