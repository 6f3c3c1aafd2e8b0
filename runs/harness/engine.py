"""One run, from the request to the results: checkout, deployment, stages, teardown in any case, results last."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from infra.deployers import sandbox
from infra.deployers.base import Address, Context, Deployer, DeployError, probe, stack_name
from infra.deployers.choose import choose
from runs.harness import stages
from runs.harness.checkout import Checkout
from runs.harness.events import Journal
from runs.harness.git import CheckoutError, secrets_of
from runs.harness.owntests import Outcome
from runs.harness.protocol import STAGES, Results, RunFolder, StageResult, Teardown, Verdict
from runs.harness.watch import Cancelled, TimedOut, Watch


class Stop(Exception):
    """The run ends here with this verdict."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class Engine:
    """Runs one request in one folder. `run` never raises for anything that a recipe or a machine does."""

    def __init__(self, folder: RunFolder, credential: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._request = folder.request()
        self._credential = dict(credential or {})
        self._journal = Journal(folder, secrets_of(self._credential))
        self.watch = Watch(folder.cancel, self._request.limits.run_seconds)
        self._started = datetime.now(UTC)
        self._results = {name: StageResult(name=name, status="not_run") for name in self._request.stages}
        self._work = folder.path / "work"
        self._deployer: Deployer | None = None
        self._deployments = 0
        self._answered = False
        self._deployed_in = 0.0
        self._sha = ""

    def run(self) -> Results:
        """Do everything, write the results, and give them."""
        self._journal.event("begun", f"Run {self._request.run_id} of {self._request.recipe}")
        verdict, reason = Verdict.PASSED, ""
        try:
            self._do()
        except Stop as stop:
            verdict, reason = stop.verdict, stop.reason
        except Exception as error:  # the results have to be written whatever happens
            verdict, reason = Verdict.ERRORED, f"The harness failed: {type(error).__name__}: {error}"
        teardown = self._teardown()
        if verdict is Verdict.PASSED and not teardown.clean:
            verdict, reason = Verdict.ERRORED, f"The teardown left something behind: {', '.join(teardown.left)}."
        results = self._conclude(verdict, reason, teardown)
        self._journal.event("finished", results.reason or f"The run {verdict}.", verdict=str(verdict))
        self._folder.write_results(results)
        self._journal.close()
        return results

    def _do(self) -> None:
        request = self._request
        unknown = [name for name in request.stages if name not in STAGES]
        if unknown or not request.stages:
            raise Stop(Verdict.ERRORED, f"There is no stage {', '.join(unknown) or 'asked for'}.")
        isolated = sandbox.available()
        if not isolated.ok:
            if not request.trusted:
                raise Stop(Verdict.ERRORED, f"A stranger's code may only run in a sandbox. {isolated.reason} {isolated.fix}")
            self._journal.warn(f"The recipe's code runs without a sandbox. {isolated.reason} {isolated.fix}")
        with self._blame(Verdict.ERRORED):
            self.watch.check()
            self._work.mkdir(mode=0o700, exist_ok=True)
            context = self._context()
            self._sha = Checkout(
                request.source, context.checkout, self._credential, self.watch.check, request.limits.disk_mb
            ).make()
            self._journal.step(f"Checked out {self._sha[:12] or 'the folder as it is'}")
            self._deployer = choose(request.deployer, context)
        run = stages.Run(context, self._deployer, self._journal, self.watch, self._folder.path)
        self._deploy(run)
        self._stages(run)

    def _context(self) -> Context:
        request, limits = self._request, self._request.limits
        return Context(
            run_id=request.run_id,
            installation=request.installation_id,
            recipe=request.recipe,
            checkout=self._work / "checkout",
            work=self._work,
            domain=request.domain or f"{stack_name(request.run_id)}.localhost",
            proxy_url=request.proxy_url,
            trusted=request.trusted,
            keep=request.keep,
            settle_seconds=limits.settle_seconds,
            memory_mb=limits.memory_mb,
            processes=limits.processes,
            disk_mb=limits.disk_mb,
            report=self._journal.step,
            log=self._journal.log,
            check=self.watch.check,
        )

    @contextmanager
    def _blame(self, verdict: Verdict) -> Iterator[None]:
        """Turn what may go wrong into the end of the run; `verdict` for what is nobody's known fault."""
        try:
            yield
        except Cancelled as error:
            raise Stop(Verdict.CANCELLED, str(error)) from error
        except TimedOut as error:
            raise Stop(Verdict.TIMED_OUT, str(error)) from error
        except DeployError as error:
            raise Stop(Verdict.FAILED if error.recipes_fault else Verdict.ERRORED, str(error)) from error
        except CheckoutError as error:
            raise Stop(Verdict.FAILED if error.recipes_fault else verdict, f"No checkout: {error}") from error

    def _deploy(self, run: stages.Run) -> None:
        """Deploy, once. It belongs to the stage install, which it fails, when that was asked for."""
        self._begin("install")
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                self._journal.step(f"Deploying with {run.deployer.name}")
                self.watch.check()
                self._deployments += 1
                run.deployer.deploy()
                state = run.deployer.settle()
                self._journal.step(f"Deployed after {time.monotonic() - started:.1f} s: {state}")
                address = run.deployer.address()
                self._answered = address is not None and probe(address, run.context.domain) is not None
        except Stop as stop:
            self._end("install", _of(stop), time.monotonic() - started)
            raise
        self._deployed_in = time.monotonic() - started

    def _stages(self, run: stages.Run) -> None:
        failed: list[str] = []
        for name in (name for name in STAGES if name in self._results):
            work = stages.TABLE[name]
            if work is None:
                self._end(name, Outcome("not_applicable", stages.missing(name)), 0.0)
                continue
            if failed:
                self._end(name, Outcome("skipped", f"The stage {failed[0]} failed."), 0.0)
                continue
            self._one(name, work, run, failed)
        if failed:
            first = self._results[failed[0]]
            raise Stop(Verdict.ERRORED if first.status == "errored" else Verdict.FAILED, f"{first.name}: {first.reason}")
        if not any(result.status == "passed" for result in self._results.values()):
            raise Stop(Verdict.ERRORED, "No stage that was asked for could run, so nothing was tested.")

    def _one(self, name: str, work: stages.Stage, run: stages.Run, failed: list[str]) -> None:
        before = self._deployed_in if name == "install" else 0.0
        if name != "install":
            self._begin(name)
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                outcome = work(run)
        except Stop as stop:
            self._end(name, _of(stop), before + time.monotonic() - started)
            raise
        self._end(name, outcome, before + time.monotonic() - started)
        if outcome.status in ("failed", "errored"):
            failed.append(name)

    def _begin(self, name: str) -> None:
        self.watch.stage(name, self._request.limits.stage_seconds)
        if name in self._results:
            self._results[name].started = datetime.now(UTC)
            self._journal.stage = name
            self._journal.event("stage_started", f"Stage {name}")

    def _end(self, name: str, outcome: Outcome, seconds: float) -> None:
        if name not in self._results:
            return
        clean = self._journal.clean
        cases = [
            case.model_copy(update={key: clean(getattr(case, key)) for key in ("name", "file", "message", "output")})
            for case in outcome.cases
        ]
        self._results[name] = StageResult.model_validate(
            {
                "name": name,
                "status": outcome.status,
                "reason": clean(outcome.reason),
                "seconds": round(seconds, 3),
                "started": self._results[name].started,
                "finished": datetime.now(UTC) if self._results[name].started else None,
                "cases": cases,
            }
        )
        self._journal.stage = name
        self._journal.event(
            "stage_finished",
            f"Stage {name}: {outcome.status}" + (f". {outcome.reason}" if outcome.reason else ""),
            status=outcome.status,
            seconds=round(seconds, 3),
        )
        self._journal.stage = ""

    def _teardown(self) -> Teardown:
        """Take the deployment away, prove that it is gone, and remove the work folder."""
        started = time.monotonic()
        self._journal.stage = ""
        left: list[str] = []
        if self._deployer and self._request.keep:
            self._journal.warn(f"Kept as asked: {self._deployer.keep()}")
        elif self._deployer:
            self._journal.step("Tearing down")
            address = self._address(self._deployer) if self._answered else None
            try:
                left = self._deployer.teardown()
            except Exception as error:  # a mistake of ours must not hide the verdict
                left = [f"whatever the teardown did not reach: {type(error).__name__}: {error}"]
            answer = probe(address, self._deployer.context.domain, timeout=1.0) if address else None
            if address and answer and answer.from_app(address):
                # An answer counts only when it stops with the app: some networks answer for anybody.
                left.append(f"an answer at {address} though the app is gone: something else answers there")
        if self._work.exists():
            shutil.rmtree(self._work, ignore_errors=True)
        seconds = round(time.monotonic() - started, 3)
        if self._deployer and not self._request.keep:
            self._journal.step(f"Torn down after {seconds:.1f} s" + (f"; left: {', '.join(left)}" if left else ""))
        return Teardown(clean=not left, left=left, seconds=seconds)

    @staticmethod
    def _address(deployer: Deployer) -> Address | None:
        try:
            return deployer.address()
        except DeployError:
            return None

    def _conclude(self, verdict: Verdict, reason: str, teardown: Teardown) -> Results:
        for name, result in list(self._results.items()):
            if result.status == "not_run" and result.started:
                self._end(name, Outcome("errored", reason), 0.0)
            elif result.status == "not_run" and verdict in (Verdict.FAILED, Verdict.ERRORED):
                why = "The run ended before it." if self._deployments else "The recipe was not deployed."
                self._end(name, Outcome("skipped", why), 0.0)
        isolated = sandbox.available()
        return Results(
            run_id=self._request.run_id,
            sha=self._sha,
            verdict=verdict,
            reason=self._journal.clean(reason),
            deployer=self._deployer.name if self._deployer else "",
            sandbox="bubblewrap" if isolated.ok else "none",
            warnings=self._journal.warnings,
            deployments=self._deployments,
            started=self._started,
            finished=datetime.now(UTC),
            stages=[self._results[name] for name in STAGES if name in self._results],
            teardown=teardown,
        )


def _of(stop: Stop) -> Outcome:
    return Outcome("failed" if stop.verdict in (Verdict.FAILED, Verdict.TIMED_OUT) else "errored", stop.reason)
