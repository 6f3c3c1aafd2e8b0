"""A recipe's tests against an app that runs already: `python -m runs.harness.given FOLDER`. Nothing is deployed or torn down.

Only stages whose tests do not change the deployment make sense here: install, custom and extra.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from infra.deployers import sandbox, trees
from infra.deployers.base import Address, Context, Deployer, DeployError, Deployment, probe
from runs.harness import disk, owntests
from runs.harness.checkout import Checkout
from runs.harness.detach import begin
from runs.harness.events import Journal
from runs.harness.git import CheckoutError
from runs.harness.owntests import Outcome, concluded
from runs.harness.protocol import STAGES, Request, Results, RunFolder, StageResult, Verdict
from runs.harness.watch import Cancelled, TimedOut, Watch

#: The stages that leave a deployment as it is.
POSSIBLE = ("install", "custom", "extra")


class GivenApp(Deployer):
    """An app that somebody else deployed: it can be asked by the web, and that is all."""

    name = "given"

    def __init__(self, context: Context, url: str) -> None:
        super().__init__(context)
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        self._address = Address(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls)

    def cannot(self, what: str) -> DeployError:
        return DeployError("not_applicable", f"cc-ci did not deploy this app (--app), so it cannot {what}.")

    def deploy(self, checkout: Path | None = None) -> None:
        raise self.cannot("deploy it anew")

    def settle(self) -> Deployment:
        raise self.cannot("wait for its services")

    def state(self) -> Deployment:
        raise self.cannot("look at its services")

    def address(self) -> Address:
        return self._address

    def logs(self, service: str = "", lines: int = 50) -> str:
        raise self.cannot("read its logs")

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        raise self.cannot("run commands in it")

    def teardown(self) -> list[str]:
        return []


def run(folder: RunFolder, begun: Callable[[Watch, int], None] = lambda watch, seconds: None) -> Results:
    """Run the request's tests against its `app_url`, write the results, and give them.

    `begun` gets the watch and the run's limit. Raises OSError where the folder cannot be written, DiskFull where there is no room
    even for the results.
    """
    request, started = folder.request(), datetime.now(UTC)
    journal = Journal(folder)
    disk.keep_room(folder)
    watch = Watch(folder.cancel, request.limits.run_seconds, also=journal.check)
    begun(watch, request.limits.run_seconds)
    stages = {name: StageResult(name=name, status="not_run") for name in request.stages}
    work = folder.path / "work"
    try:
        with watch.insisting():
            verdict, reason = _all(request, stages, journal, watch, folder.path, work)
    except Exception as error:  # the results have to be written whatever happens
        verdict, reason = Verdict.ERRORED, f"The harness failed: {type(error).__name__}: {error}"
    trees.remove(work)
    results = Results(
        run_id=request.run_id,
        verdict=verdict,
        reason=journal.clean(reason),
        sandbox="bubblewrap" if sandbox.available().ok else "none",
        warnings=journal.warnings,
        started=started,
        finished=datetime.now(UTC),
        stages=[stages[name] for name in STAGES if name in stages],
    )
    journal.event("finished", reason or f"The tests {verdict}.", verdict=str(verdict))
    journal.close()
    disk.write(folder, results)
    return results


def _all(
    request: Request, stages: dict[str, StageResult], journal: Journal, watch: Watch, folder: Path, work: Path
) -> tuple[Verdict, str]:
    try:
        deployer = _prepare(request, journal, watch, work)
        for name in (name for name in STAGES if name in stages):
            watch.stage(name, request.limits.stage_seconds)
            _one(name, stages, deployer, journal, watch, folder)
    except Cancelled as error:
        return Verdict.CANCELLED, str(error)
    except TimedOut as error:
        return Verdict.TIMED_OUT, str(error)
    except (CheckoutError, DeployError, disk.DiskFull) as error:
        return Verdict.ERRORED, str(error)
    except OSError as error:
        if told := disk.full(error, folder):
            return Verdict.ERRORED, str(told)
        raise
    bad = [stage for stage in stages.values() if stage.status == "failed"]
    if bad:
        return Verdict.FAILED, "; ".join(f"{stage.name}: {stage.reason}" for stage in bad)
    if not any(stage.status == "passed" for stage in stages.values()):
        return Verdict.ERRORED, "No test ran, so nothing was tested. See each stage's reason."
    return Verdict.PASSED, ""


def _prepare(request: Request, journal: Journal, watch: Watch, work: Path) -> GivenApp:
    limits = request.limits
    if not (isolated := sandbox.available()).ok:
        if not request.trusted:
            raise DeployError("tool_missing", f"A stranger's code may only run in a sandbox. {isolated.reason}", isolated.fix)
        journal.warn(f"The recipe's code runs without a sandbox. {isolated.reason} {isolated.fix}")
    work.mkdir(mode=0o700, exist_ok=True)
    context = Context(
        run_id=request.run_id,
        installation=request.installation_id,
        recipe=request.recipe,
        checkout=work / "checkout",
        work=work,
        domain=urlsplit(request.app_url).hostname or "",
        trusted=request.trusted,
        memory_mb=limits.memory_mb,
        processes=limits.processes,
        disk_mb=limits.disk_mb,
        report=journal.step,
        log=journal.log,
        check=watch.check,
    )
    Checkout(request.source, context.checkout, None, watch.check, limits.disk_mb).make()
    deployer = GivenApp(context, request.app_url)
    answer = probe(deployer.address(), context.domain)
    if answer is None:
        raise DeployError("never_answered", f"Nothing speaks HTTP at {request.app_url}.", "Is the app up, and the address right?")
    journal.step(f"The app at {request.app_url} answers: {answer.status}")
    return deployer


def _one(name: str, stages: dict[str, StageResult], deployer: GivenApp, journal: Journal, watch: Watch, folder: Path) -> None:
    journal.stage = name
    begun, started = time.monotonic(), datetime.now(UTC)
    journal.event("stage_started", f"Stage {name}")
    outcome = Outcome("errored", "The harness failed.")
    try:
        outcome = _tests(name, deployer, journal, watch, folder)
    except (Cancelled, TimedOut) as error:
        outcome = Outcome("failed" if isinstance(error, TimedOut) else "errored", str(error))
        raise
    finally:
        stages[name] = concluded(name, outcome, time.monotonic() - begun, started, journal)


def _tests(name: str, deployer: GivenApp, journal: Journal, watch: Watch, folder: Path) -> Outcome:
    if name not in POSSIBLE:
        return Outcome("not_applicable", "The app runs already (--app), and nothing about it is changed.")
    files = owntests.find(deployer.context.checkout, name)
    return owntests.run(name, files, deployer.context, deployer, journal, watch, folder)


def main(folder: str) -> int:
    os.umask(0o022)
    sys.stdin.read()  # the credentials of this machine, of which nothing is needed here
    try:
        results = run(RunFolder(Path(folder)), begin)
    except (disk.DiskFull, OSError) as error:
        where = RunFolder(Path(folder)).path
        sys.stderr.write(f"{(disk.full(error, where) if isinstance(error, OSError) else None) or error}\n")
        return 2
    return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(results.verdict, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
