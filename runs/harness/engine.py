"""One run, from the request to the results: checkout, deployment, stages, teardown in any case, results last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from infra.deployers import images, sandbox, trees
from infra.deployers.base import Address, Deployer, DeployError, probe
from infra.deployers.choose import choose
from runs.harness import artefacts, bounds, disk, level, oidc, prepare, stages
from runs.harness.events import Journal
from runs.harness.git import CheckoutError, secrets_of
from runs.harness.owntests import Outcome, concluded
from runs.harness.prepare import Prepared
from runs.harness.protocol import STAGES, Extras, Oidc, Results, RunFolder, StageResult, Teardown, Verdict
from runs.harness.settings import SettingsError
from runs.harness.watch import Cancelled, Exceeded, TimedOut, Watch


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
        disk.keep_room(folder)
        self.watch = Watch(folder.cancel, self._request.limits.run_seconds, also=self._journal.check)
        self._started = datetime.now(UTC)
        self._results = {name: StageResult(name=name, status="not_run") for name in self._request.stages}
        self._work = folder.path / "work"
        self._prepared: Prepared | None = None
        self._deployer: Deployer | None = None
        self._realm: oidc.Realm | None = None
        self._run: stages.Run | None = None
        self._deployed = False
        self._answered = False
        self._deployed_in = 0.0

    def run(self) -> Results:
        """Do everything, write the results, and give them. Raises DiskFull, or OSError, where there is no room even for those."""
        self._journal.event("begun", f"Run {self._request.run_id} of {self._request.recipe}")
        verdict, reason = Verdict.PASSED, ""
        try:
            with self._blame(Verdict.ERRORED), self.watch.insisting():
                self._do()
        except Stop as stop:
            verdict, reason = stop.verdict, stop.reason
        except Exception as error:  # the results have to be written whatever happens
            verdict, reason = Verdict.ERRORED, f"The harness failed: {type(error).__name__}: {error}"
        teardown = self._teardown()
        if verdict is Verdict.PASSED and not teardown.clean:
            verdict, reason = Verdict.ERRORED, f"The teardown left something behind: {', '.join(teardown.left)}."
        disk.give_room(self._folder)
        if verdict is Verdict.PASSED and (told := self._unwritten()):
            verdict, reason = Verdict.ERRORED, told
        if self._deployments > 1:
            verdict, reason = Verdict.ERRORED, f"The recipe was deployed {self._deployments} times in one run."
        results = self._conclude(verdict, reason, teardown)
        self._journal.event("finished", results.reason or f"The run {verdict}.", verdict=str(verdict))
        self._journal.close()
        disk.write(self._folder, results)
        return results

    def _unwritten(self) -> str:
        """What could not be written on the way; empty when everything was."""
        try:
            self._journal.check()
        except (disk.DiskFull, OSError) as error:
            return str(error)
        return ""

    @property
    def run_seconds(self) -> int:
        return self._request.limits.run_seconds

    @property
    def _deployments(self) -> int:
        return self._deployer.deployments if self._deployer else 0

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
            context = prepare.context_of(request, self._work, self._credential, self._journal, self.watch)
            self._prepared = ready = prepare.checked_out(request, context, self._credential, self._journal, self.watch)
            self._lend(ready)
            self._deployer = choose(request.deployer, context)
        self.watch.exceeded = self._deployer.exceeded
        self._read(ready, self._deployer)
        self._run = run = self._make_run(ready, self._deployer)
        self._deploy(run, ready)
        try:
            self._stages(run)
        finally:
            self._take_picture(run)

    def _read(self, ready: Prepared, deployer: Deployer) -> None:
        """Read the recipe. What cannot be read or is refused fails the stage install, as if it had been deployed."""
        started = time.monotonic()
        self.watch.part("Reading the recipe", self._request.limits.stage_seconds)
        try:
            with self._blame(Verdict.ERRORED):
                prepare.read(self._request, ready, deployer, self._journal)
        except Stop as stop:
            if stop.verdict is Verdict.FAILED:
                self._begin("install")
                self._end("install", _of(stop), time.monotonic() - started)
            raise

    def _lend(self, ready: Prepared) -> None:
        """A realm of the run's own, if the recipe needs one and there is a provider."""
        if "oidc" not in ready.settings.needs:
            return
        wanted = self._request.oidc
        if wanted is None:
            self._journal.warn("The recipe needs an OIDC provider, and this server has none: tests that use it are not run.")
            return
        try:
            with self._journal.timed("oidc"):
                self._realm = self._provider(wanted).create(self._request.run_id, ready.context.domain)
        except oidc.OidcError as error:
            self._journal.warn(f"The OIDC provider lends no realm, so tests that use it are not run: {error}")
            return
        lent = oidc.environment(self._realm)
        self._journal.hide(self._realm.secrets)
        ready.context.lent = lent

    def _make_run(self, ready: Prepared, deployer: Deployer) -> stages.Run:
        run = stages.Run(ready.context, deployer, self._journal, self.watch, self._folder.path, ready.settings)
        run.wanted_version = ready.version
        if "upgrade" not in self._results:
            return run
        if ready.previous and not ready.differs:
            run.no_upgrade = Outcome("not_applicable", f"Nothing that is deployed differs from {ready.previous.name}.")
        elif ready.previous and ready.problem_of_previous:
            run.no_upgrade = Outcome("skipped", f"{ready.previous.name} cannot be deployed any more: {ready.problem_of_previous}")
        elif ready.previous and "upgrade" in deployer.abilities and "upgrade" not in ready.settings.stages:
            run.previous, run.previous_checkout = ready.previous, ready.previous_checkout
        return run

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
        except (SettingsError, stages.HookFailed, Exceeded) as error:
            raise Stop(Verdict.FAILED, str(error)) from error
        except CheckoutError as error:
            raise Stop(Verdict.FAILED if error.recipes_fault else verdict, f"No checkout: {error}") from error
        except disk.DiskFull as error:
            raise Stop(Verdict.ERRORED, str(error)) from error
        except OSError as error:
            if told := disk.full(error, self._folder.path):
                raise Stop(Verdict.ERRORED, str(told)) from error
            raise
        except MemoryError as error:
            said = f"What the recipe holds takes more than the {bounds.MEMORY_MB} MB that the harness has to read it."
            raise Stop(Verdict.ERRORED, said) from error

    def _deploy(self, run: stages.Run, ready: Prepared) -> None:
        """Deploy, once. It belongs to the stage install, which it fails, when that was asked for."""
        self._begin("install")
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                which = f" {run.previous.name}, from which it will be upgraded," if run.previous else ""
                self._journal.step(f"Deploying{which} with {run.deployer.name}")
                self.watch.check()
                with self._journal.timed("deploy"):
                    self._deployed = True
                    run.deployer.deploy(run.previous_checkout)
                self._journal.hide(run.deployer.secrets)
                with self._journal.timed("settle"):
                    state = run.deployer.settle()
                self._journal.step(f"Deployed after {time.monotonic() - started:.1f} s: {state}")
                address = run.deployer.address()
                self._answered = address is not None and probe(address, run.context.domain) is not None
        except Stop as stop:
            if run.previous and stop.verdict is Verdict.FAILED:
                stop.reason = (
                    f"The published version {run.previous.name}, which was to be upgraded, does not come up: {stop.reason} "
                    f"Without the upgrade: !testme --stages install,backup,restore,custom"
                )
            self._end("install", _of(stop), time.monotonic() - started)
            raise
        self._deployed_in = time.monotonic() - started

    def _stages(self, run: stages.Run) -> None:
        failed: list[str] = []
        for name in (name for name in STAGES if name in self._results):
            if outcome := self._not_applicable(run, name):
                self._end(name, outcome, 0.0)
            elif failed:
                self._end(name, Outcome("skipped", f"The stage {failed[0]} failed."), 0.0)
            else:
                self._one(name, run, failed)
        if failed:
            first = self._results[failed[0]]
            raise Stop(Verdict.ERRORED if first.status == "errored" else Verdict.FAILED, f"{first.name}: {first.reason}")
        if not any(result.status == "passed" for result in self._results.values()):
            raise Stop(Verdict.ERRORED, "No stage that was asked for could run, so nothing was tested.")

    def _not_applicable(self, run: stages.Run, name: str) -> Outcome | None:
        """Whether a stage does not apply: as the recipe declares, or since the deployer is not made for it."""
        if reason := run.settings.stages.get(name):  # type: ignore[call-overload]
            return Outcome("not_applicable", f"As cc-ci.toml says: {reason}")
        if (ability := stages.ABILITY.get(name)) and ability not in run.deployer.abilities:
            # Nothing of the recipe shows that it does not apply: the level may not pass over it.
            return Outcome("not_applicable", f"The deployer {run.deployer.name} cannot do it.", proven=False)
        return None

    def _one(self, name: str, run: stages.Run, failed: list[str]) -> None:
        before = self._deployed_in if name == "install" else 0.0
        if name != "install":
            self._begin(name)
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                outcome = stages.TABLE[name](run)
        except Stop as stop:
            self._end(name, _of(stop), before + time.monotonic() - started)
            raise
        self._end(name, outcome, before + time.monotonic() - started)
        if outcome.status in ("failed", "errored"):
            failed.append(name)

    def _begin(self, name: str) -> None:
        limits = self._prepared.limits if self._prepared else self._request.limits
        self.watch.stage(name, limits.stage_seconds)
        if name in self._results:
            self._results[name].started = datetime.now(UTC)
            self._journal.stage = name
            self._journal.event("stage_started", f"Stage {name}")

    def _end(self, name: str, outcome: Outcome, seconds: float) -> None:
        if name not in self._results:
            return
        started = self._results[name].started
        self._results[name] = concluded(name, outcome, seconds, started, self._journal)

    def _take_picture(self, run: stages.Run) -> None:
        if not (self._request.picture and self._answered) or run.settings.picture.off or self.watch.cancelled:
            return
        # It decides nothing: a wish to stop, or a full disk, is heard by whatever comes next.
        with self._journal.timed("picture"):
            try:
                artefacts.picture(run)
            except Exception as error:
                self._journal.log(f"No picture: {type(error).__name__}: {error}")

    def _teardown(self) -> Teardown:
        """Take the deployment away, prove that it is gone, and remove the work folder. Never raises: the results come next."""
        started = time.monotonic()
        self._journal.stage = ""
        left: list[str] = []
        if self._deployer and self._deployed:
            artefacts.keep_logs(self._deployer, self._folder.path, self._journal)
        if self._deployer and self._request.keep:
            left += self._insist("keeping it", partial(self._keep, self._deployer))
        elif self._deployer:
            self._journal.step("Tearing down")
            reached = self._reached(self._deployer) if self._answered else None
            with self._journal.timed("teardown"):
                left += self._insist("the teardown", self._deployer.teardown)
            if reached:
                left += self._insist("the proof of it", partial(self._still_there, self._deployer, *reached))
        left += self._insist("giving back its realm", self._take_back)
        self._prune_images()
        if self._work.exists() and not trees.remove(self._work):
            left.append(f"files in {self._work}")
        seconds = round(time.monotonic() - started, 3)
        if self._deployer and not self._request.keep:
            self._journal.step(f"Torn down after {seconds:.1f} s" + (f"; left: {', '.join(left)}" if left else ""))
        return Teardown(clean=not left, left=left, seconds=seconds)

    @staticmethod
    def _insist(what: str, do: Callable[[], list[str]]) -> list[str]:
        """What a part of the teardown leaves. A mistake of ours in it must hide neither the verdict nor the next part."""
        try:
            return do()
        except Exception as error:
            return [f"whatever {what} did not reach: {type(error).__name__}: {error}"]

    def _keep(self, deployer: Deployer) -> list[str]:
        self._journal.warn(f"Kept as asked: {deployer.keep()}")
        return []

    @staticmethod
    def _reached(deployer: Deployer) -> tuple[Address, str] | None:
        """Where the app is reached, and from which address of ours."""
        try:
            address = deployer.address()
            return (address, address.way()) if address else None
        except Exception:  # the teardown comes next, and has to
            return None

    @staticmethod
    def _still_there(deployer: Deployer, address: Address, way: str) -> list[str]:
        # Where the app's own network is gone with it, the address leads elsewhere by now, and is nobody's to ask.
        answer = probe(address, deployer.context.domain, timeout=1.0) if address.way() == way else None
        if answer and answer.from_app(address):
            # An answer counts only when it stops with the app: some networks answer for anybody.
            return [f"an answer at {address} though the app is gone: something else answers there"]
        return []

    def _prune_images(self) -> None:
        wanted = self._request.images
        try:
            removed = images.prune(Path(wanted.ledger) if wanted.ledger else None, wanted.most_gb, wanted.keep)
        except Exception as error:  # images are nobody's leftovers, and the results come next
            self._journal.log(f"Old images could not be removed: {error!r}")
            return
        if removed:
            self._journal.step(f"Removed images that were not used for long: {', '.join(removed)}")

    def _take_back(self) -> list[str]:
        if not self._realm or not self._request.oidc or self._request.keep:
            return []
        try:
            self._provider(self._request.oidc).delete(self._realm)
        except oidc.OidcError as error:
            return [f"the realm {self._realm.name}: {error}"]
        return []

    def _provider(self, wanted: Oidc) -> oidc.Provider:
        password = self._credential.get("oidc_password", "")
        return oidc.Provider(wanted.url, wanted.user, password, self._request.installation_id)

    def _conclude(self, verdict: Verdict, reason: str, teardown: Teardown) -> Results:
        for name, result in list(self._results.items()):
            if result.status == "not_run" and result.started:
                self._end(name, Outcome("errored", reason), 0.0)
            elif result.status == "not_run" and verdict in (Verdict.FAILED, Verdict.ERRORED):
                why = "The run ended before it." if self._deployed else "The recipe was not deployed."
                self._end(name, Outcome("skipped", why), 0.0)
        isolated, ready, run = sandbox.available(), self._prepared, self._run
        results = Results(
            run_id=self._request.run_id,
            sha=ready.sha if ready else "",
            verdict=verdict,
            reason=self._journal.clean(reason),
            deployer=self._deployer.name if self._deployer else "",
            sandbox="bubblewrap" if isolated.ok else "none",
            warnings=self._journal.warnings,
            deployments=self._deployments,
            upgraded_from=run.previous.name if run and run.previous else "",
            version=ready.version if ready else "",
            started=self._started,
            finished=datetime.now(UTC),
            stages=[self._results[name] for name in STAGES if name in self._results],
            teardown=teardown,
            timings=self._journal.timings,
            lint=ready.lint if ready else [],
            extras=prepare.extras_of(ready, ran="extra" in self._results) if ready else Extras(),
            loosened=ready.loosened if ready else [],
            changed=ready.changed if ready else [],
        )
        results.artefacts = artefacts.finish(self._folder, self._journal)
        results.secret_leaks = sorted(self._journal.leaks)
        results.level = level.climb(self._results, ready.lint if ready else None, verdict, results.secret_leaks)
        return results


def _of(stop: Stop) -> Outcome:
    return Outcome("failed" if stop.verdict in (Verdict.FAILED, Verdict.TIMED_OUT) else "errored", stop.reason)
