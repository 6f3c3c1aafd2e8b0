"""The table of stages: what each one does, in the order of the protocol. A later stage slots in as one more row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.deployers.base import Context, Deployer, Deployment, probe
from runs.harness import owntests
from runs.harness.events import Journal
from runs.harness.owntests import Outcome
from runs.harness.protocol import STAGES, CaseResult
from runs.harness.watch import Watch

#: How long an app without a web port has to stay up before it counts as installed.
QUIET_SECONDS = 2.0


@dataclass
class Run:
    """What a stage works with."""

    context: Context
    deployer: Deployer
    journal: Journal
    watch: Watch
    folder: Path
    deployments: int = 0


Stage = Callable[[Run], Outcome]


def install(run: Run) -> Outcome:
    """The app really answers, or, without a web port, runs quietly; then the recipe's own test_install.py."""
    cases = [_generic(run)]
    if cases[0].status != "passed":
        return Outcome("failed", cases[0].message, cases)
    files = owntests.find(run.context.checkout, "install")
    if not files:
        return Outcome("passed", "", cases)
    own = _own(run, "install", files)
    status = "passed" if own.status == "not_applicable" else own.status
    return Outcome(status, own.reason if status != "passed" else "", [*cases, *own.cases])


def custom(run: Run) -> Outcome:
    """The recipe's own tests."""
    files = owntests.find(run.context.checkout, "custom")
    if not files:
        return Outcome("not_applicable", "The recipe has no tests of its own.")
    return _own(run, "custom", files)


def _own(run: Run, stage: str, files: list[str]) -> Outcome:
    run.journal.step(f"Running {len(files)} test file{'s' if len(files) > 1 else ''} of the recipe")
    return owntests.run(stage, files, run.context, run.deployer, run.journal, run.watch, run.folder)


def _generic(run: Run) -> CaseResult:
    started = time.monotonic()
    address = run.deployer.address()
    name, problem = ("the app answers", "") if address else ("the services stay up", "")
    if address:
        answer = probe(address, run.context.domain)
        if answer is None:
            problem = f"Nothing speaks HTTP at {address}."
        elif not answer.from_app(address):
            problem = f"The answer to GET / is {answer.status}."
        else:
            run.journal.step(f"The app answers: {answer.status}")
    else:
        problem = _quiet(run)
    state = run.deployer.state()
    if not problem and not state.settled:
        problem = f"Not everything runs any more: {state}. {_problems(state)}".strip()
    return CaseResult(
        name=name,
        file="generic",
        status="failed" if problem else "passed",
        seconds=round(time.monotonic() - started, 3),
        message=problem,
        output=run.deployer.logs(lines=40) if problem else "",
    )


def _quiet(run: Run) -> str:
    """Watch services that nobody can ask: all there, healthy, none started anew. What is wrong, or nothing."""
    restarts = {service.name: service.restarts for service in run.deployer.state().services}
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        run.watch.check()
        time.sleep(0.3)
        state = run.deployer.state()
        for service in state.services:
            if service.restarts > restarts.get(service.name, 0):
                return f"The service {service.name} was started anew: {service.problem or 'it had ended'}."
        if not state.settled:
            return f"Not everything runs any more: {state}. {_problems(state)}".strip()
    return ""


def _problems(state: Deployment) -> str:
    return " ".join(f"{service.name}: {service.problem}." for service in state.services if service.problem)


#: Stage by stage: what to run, or None for one that is still to be written.
TABLE: dict[str, Stage | None] = {
    "install": install,
    "upgrade": None,
    "backup": None,
    "restore": None,
    "custom": custom,
    "extra": None,
}
assert tuple(TABLE) == STAGES


def missing(stage: str) -> str:
    """Why a stage of the table does not run yet."""
    return f"This version of cc-ci cannot run the stage {stage} yet."
