"""Runs one test run: checkout, deployment, stages, teardown in any case, and finally the results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from infra.deployers.base import Deployer
from infra.deployers.context import Context
from infra.deployers.docker import images
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap, trees
from infra.deployers.probe import Address, probe
from infra.deployers.select import choose
from infra.deployers.swarm.ephemeral import SwarmDeployer
from infra.git.runner import GitError
from runs.harness import (
    artefacts,
    disk_full,
    known_good,
    level,
    lint,
    oidc,
    prepare,
    process_limits,
    readme,
    recipe_config,
    stages,
)
from runs.harness.checkout import Checkout
from runs.harness.deadlines import Cancelled, Deadlines, Exceeded, TimedOut
from runs.harness.events import Journal
from runs.harness.existing_app import ExistingApp
from runs.harness.git import secrets_of
from runs.harness.prepare import Prepared
from runs.harness.protocol import Extras, ImageResult, KnownGood, Oidc, Results, RunFolder, StageResult, Teardown, Verdict
from runs.harness.recipe_config import RecipeConfigError
from runs.harness.recipe_tests import Outcome, concluded
from runs.harness.stage_table import STAGES, StageName

_IN_FULL = "To test this commit in full: !testme"
_MAKE_KNOWN_GOOD = (
    "A full run of the default branch that passes on this machine's Swarm makes it: a scheduled one, or one from the admin. "
    f"{_IN_FULL}"
)


class Stop(Exception):
    """Ends the run with this verdict."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class Engine:
    """Runs one request in one folder. `run` never raises because of a recipe or the host."""

    def __init__(self, folder: RunFolder, credential: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._request = folder.request()
        self._credential = dict(credential or {})
        self._journal = Journal(folder, secrets_of(self._credential))
        disk_full.keep_room(folder)
        self.deadlines = Deadlines(folder.cancel, self._request.limits.run_seconds, also=self._journal.check)
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
        self._wasted = 0  # deployments of an abandoned published version
        self._known: known_good.Taken | None = None  # the data that a quick run starts on
        self._checked: set[str] = set()  # services that were seen to have a health check

    def run(self) -> Results:
        """Do everything, write and return the results. Raises DiskFull or OSError if there is no space even for those."""
        self._journal.event("begun", f"Run {self._request.run_id} of {self._request.recipe}")
        verdict, reason = Verdict.PASSED, ""
        try:
            with self._blame(Verdict.ERRORED), self.deadlines.insisting():
                self._do()
        except Stop as stop:
            verdict, reason = stop.verdict, stop.reason
        except Exception as error:  # the results have to be written whatever happens
            verdict, reason = Verdict.ERRORED, f"The harness crashed: {type(error).__name__}: {error}"
        teardown = self._teardown(verdict)
        if verdict is Verdict.PASSED and not teardown.clean:
            verdict, reason = Verdict.ERRORED, f"The teardown left something behind: {', '.join(teardown.left)}."
        disk_full.give_room(self._folder)
        if verdict is Verdict.PASSED and (message := self._unwritten()):
            verdict, reason = Verdict.ERRORED, message
        if self._deployments > 1 + self._wasted:
            verdict, reason = Verdict.ERRORED, f"The recipe was deployed {self._deployments} times in one run."
        if verdict is not Verdict.PASSED:
            trees.remove(self._folder.path / known_good.FOLDER)
        results = self._conclude(verdict, reason, teardown)
        self._journal.event("finished", results.reason or f"The run {verdict}.", verdict=str(verdict))
        self._journal.close()
        disk_full.write(self._folder, results)
        return results

    def _unwritten(self) -> str:
        """What could not be written during the run; empty if everything was."""
        try:
            self._journal.check()
        except (disk_full.DiskFull, OSError) as error:
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
            raise Stop(Verdict.ERRORED, f"Unknown stage: {', '.join(unknown) or 'none was requested'}.")
        isolated = bubblewrap.available()
        if not isolated.ok:
            if not request.trusted:
                raise Stop(Verdict.ERRORED, f"A stranger's code may only run in a sandbox. {isolated.reason} {isolated.fix}")
            self._journal.warn(f"The recipe's code runs without a sandbox. {isolated.reason} {isolated.fix}")
        with self._blame(Verdict.ERRORED):
            self.deadlines.check()
            self._work.mkdir(mode=0o700, exist_ok=True)
            context = prepare.context_of(request, self._work, self._credential, self._journal, self.deadlines)
            if request.app_url:
                return self._test_existing(context)
            if request.quick is not None:
                self._take_known_good(context)
            self._prepared = ready = prepare.checked_out(request, context, self._credential, self._journal, self.deadlines)
            self._lend(ready)
            self._deployer = choose(request.deployer, context)
            if self._known:
                self._start_on(self._known, ready, self._deployer)
        self.deadlines.exceeded = self._deployer.exceeded
        self._read(ready, self._deployer)
        self._run = run = self._make_run(ready, self._deployer)
        self._deploy(run)
        try:
            self._stages(run)
        finally:
            self._take_screenshot(run)

    def _take_known_good(self, context: Context) -> None:
        """Take the known-good data that a quick run starts on, with the names that it knows its app by."""
        request = self._request
        if not request.trusted:
            raise Stop(Verdict.ERRORED, "A quick run is only for trusted code: it would hand it the data of another run.")
        try:
            with self.deadlines.apart(request.limits.run_seconds):
                self._known = known = known_good.take(request.quick or "", request.limits.run_seconds, self.deadlines.check)
        except known_good.Unusable as error:
            raise Stop(Verdict.ERRORED, f"{error} {_MAKE_KNOWN_GOOD}") from error
        context.app_stack, context.domain = known.stack, known.domain

    def _start_on(self, known: known_good.Taken, ready: Prepared, deployer: Deployer) -> None:
        if "save" not in deployer.abilities:
            message = f"The deployer {deployer.name} keeps no data to start on: quick runs need the deployer swarm."
            raise Stop(Verdict.ERRORED, f"{message} {_IN_FULL}")
        if reason := ready.config.stages.get(StageName.UPGRADE):
            raise Stop(
                Verdict.ERRORED, f"A quick run is an upgrade, which cc-ci.toml declares not applicable: {reason} {_IN_FULL}"
            )
        secrets: dict[str, str] = json.loads(self._credential.get("known_good", "{}"))
        self._journal.hide(list(secrets.values()))
        ready.known_good = known.origin
        deployer.start_on(known.data(secrets))
        self._journal.step(f"Starting on the data of run {known.origin.run_id.hex[:8]}, at {known.origin.sha[:12]}")

    def _test_existing(self, context: Context) -> None:
        """Run the recipe's own tests against an app that somebody else deployed, without changing it."""
        request = self._request
        Checkout(request.source, context.checkout, None, self.deadlines.check, request.limits.disk_mb).make()
        app = ExistingApp(context, request.app_url)
        answer = probe(app.address(), context.domain)
        if answer is None:
            raise Stop(Verdict.ERRORED, f"No HTTP response from {request.app_url}. Is the app up, and is the address right?")
        self._journal.step(f"The app at {request.app_url} responds: {answer.summary('/')}")
        self._stages(stages.Run(context, app, self._journal, self.deadlines, self._folder.path))

    def _read(self, ready: Prepared, deployer: Deployer) -> None:
        """Read the recipe. If it cannot be read or is rejected, the stage install fails, as if it had been deployed."""
        started = time.monotonic()
        self.deadlines.part("Reading the recipe", self._request.limits.stage_seconds)
        try:
            with self._blame(Verdict.ERRORED):
                prepare.read(self._request, ready, deployer, self._journal)
        except Stop as stop:
            if stop.verdict is Verdict.FAILED:
                self._begin("install")
                self._end("install", _of(stop), time.monotonic() - started)
            raise

    def _lend(self, ready: Prepared) -> None:
        """Lend the run its own realm, if the recipe needs one and there is a provider."""
        if "oidc" not in ready.config.needs:
            return
        wanted = self._request.oidc
        if wanted is None:
            self._journal.warn("The recipe needs an OIDC provider, but this server has none: tests that use it are skipped.")
            return
        try:
            with self._journal.timed("oidc"):
                self._realm = self._provider(wanted).create(self._request.run_id, ready.context.domain)
        except oidc.OidcError as error:
            self._journal.warn(f"The OIDC provider lent no realm, so tests that use it are skipped: {error}")
            return
        lent = oidc.environment(self._realm)
        self._journal.hide(self._realm.secrets)
        ready.context.lent = lent

    def _make_run(self, ready: Prepared, deployer: Deployer) -> stages.Run:
        run = stages.Run(ready.context, deployer, self._journal, self.deadlines, self._folder.path, ready.config, kept=ready.kept)
        run.wanted_version = ready.version
        if "upgrade" in self._results:
            self._choose_previous(run, ready, deployer)
        if run.previous is None:
            ready.context.installed = None
        return run

    def _choose_previous(self, run: stages.Run, ready: Prepared, deployer: Deployer) -> None:
        """Set the version to upgrade from, or why there is no upgrade. Raises Stop if the commit's own settings are the cause."""
        if ready.unreadable:
            names = ", ".join(ready.unreadable[:5])
            message = f"No tag is a published version, X.Y.Z+<app version>: {names}."
            run.no_upgrade = Outcome("not_applicable", message, proven=False)
        elif ready.previous and not ready.differs:
            run.no_upgrade = Outcome("not_applicable", f"What would be deployed does not differ from {ready.previous.name}.")
        elif ready.known_good and ready.problem_of_previous:
            raise self._not_startable(ready.known_good, ready.problem_of_previous)
        elif ready.previous and ready.problem_of_previous:
            run.no_upgrade = self._given_up(ready.previous.name, ready.problem_of_previous)
        elif ready.previous and "upgrade" in deployer.abilities and "upgrade" not in ready.config.stages:
            run.previous, run.previous_checkout, run.change = ready.previous, ready.previous_checkout, ready.change

    @contextmanager
    def _blame(self, verdict: Verdict) -> Iterator[None]:
        """Turn errors into the end of the run. `verdict`: for those that are not known to be anybody's fault."""
        try:
            yield
        except Cancelled as error:
            raise Stop(Verdict.CANCELLED, str(error)) from error
        except TimedOut as error:
            raise Stop(Verdict.TIMED_OUT, str(error)) from error
        except DeployError as error:
            raise Stop(Verdict.FAILED if error.recipes_fault else Verdict.ERRORED, str(error)) from error
        except (RecipeConfigError, stages.HookFailed, Exceeded) as error:
            raise Stop(Verdict.FAILED, str(error)) from error
        except GitError as error:
            raise Stop(Verdict.FAILED if error.recipes_fault else verdict, f"Checkout failed: {error}") from error
        except disk_full.DiskFull as error:
            raise Stop(Verdict.ERRORED, str(error)) from error
        except OSError as error:
            if text := disk_full.full(error, self._folder.path):
                raise Stop(Verdict.ERRORED, str(text)) from error
            raise
        except MemoryError as error:
            message = (
                f"Reading the recipe takes more than the {process_limits.MEMORY_MB} MB of memory that the harness has for it."
            )
            raise Stop(Verdict.ERRORED, message) from error

    def _deploy(self, run: stages.Run) -> None:
        """Deploy, once. A failure is one of the stage install, if that was requested."""
        self._begin("install")
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                try:
                    self._put(run)
                except DeployError as error:
                    if known := self._prepared and self._prepared.known_good:
                        raise self._not_startable(known, str(error)) from error
                    if not (error.recipes_fault or error.kind == "image_denied"):
                        raise
                    self._without_previous(run, error)
                    self._put(run)
        except Stop as stop:
            self._end("install", _of(stop), time.monotonic() - started)
            raise
        self._deployed_in = time.monotonic() - started

    @staticmethod
    def _not_startable(known: KnownGood, problem: str) -> Stop:
        return Stop(
            Verdict.ERRORED, f"The known-good commit {known.sha[:12]} cannot be started on its data: {problem} {_IN_FULL}"
        )

    def _put(self, run: stages.Run) -> None:
        """Deploy the version that is installed first, and wait until it is up."""
        started = time.monotonic()
        which = f" {run.previous.name}, to upgrade from," if run.previous else ""
        self._journal.step(f"Deploying{which} with {run.deployer.name}")
        self.deadlines.check()
        with self._journal.timed("deploy"):
            self._deployed = True
            run.deployer.deploy(run.previous_checkout)
        self._journal.hide(run.deployer.secrets)
        with self._journal.timed("settle"):
            state = run.deployer.settle()
        self._journal.step(f"Deployed after {time.monotonic() - started:.1f} s: {state}")
        address = run.deployer.address()
        self._answered = address is not None and probe(address, run.context.domain) is not None

    def _without_previous(self, run: stages.Run, error: Exception) -> None:
        """Continue with the commit alone: the published version is unavailable or does not work, and the commit may fix that.

        Raises `error` if the commit's own settings, which apply to both versions, could be the cause.
        """
        if run.previous is None:
            raise error
        run.no_upgrade = self._given_up(run.previous.name, str(error))
        run.previous = run.previous_checkout = run.context.installed = None
        self._start_clock("install")  # restart
        self._wasted = run.deployer.deployments
        run.deployer.start_over()

    def _stages(self, run: stages.Run) -> None:
        failed: list[str] = []
        for name in (stage for stage in StageName if stage in self._results):
            if outcome := self._not_applicable(run, name):
                self._end(name, outcome, 0.0)
            elif failed and not self._request.app_url:  # there, the stages' tests are independent
                self._end(name, Outcome("skipped", f"The stage {failed[0]} failed."), 0.0)
            else:
                self._one(name, run, failed)
        if failed:
            bad = [self._results[name] for name in failed]
            verdict = Verdict.ERRORED if bad[0].status == "errored" else Verdict.FAILED
            raise Stop(verdict, "; ".join(f"{result.name}: {result.reason}" for result in bad))
        if not any(result.status == "passed" for result in self._results.values()):
            raise Stop(Verdict.ERRORED, "None of the requested stages could run, so nothing was tested.")

    def _not_applicable(self, run: stages.Run, name: StageName) -> Outcome | None:
        """Why a stage does not apply: declared by the recipe, or not supported by the deployer. None if it does."""
        if self._request.app_url:
            message = "The app is already running (--app), and is not changed."
            return None if name.existing_app else Outcome("not_applicable", message)
        if reason := run.config.stages.get(name):
            return Outcome("not_applicable", f"Declared in cc-ci.toml: {reason}")
        if name.ability and name.ability not in run.deployer.abilities:
            # The recipe does not show that it does not apply, so the level must not skip it.
            return Outcome("not_applicable", f"The deployer {run.deployer.name} does not support it.", proven=False)
        return None

    def _one(self, name: StageName, run: stages.Run, failed: list[str]) -> None:
        before = self._deployed_in if name == "install" else 0.0
        if not self._results[name].started:  # install begins with the deployment
            self._begin(name)
        started = time.monotonic()
        try:
            with self._blame(Verdict.ERRORED):
                outcome = self._outcome(run, name)
        except Stop as stop:
            self._end(name, _of(stop), before + time.monotonic() - started)
            raise
        self._end(name, outcome, before + time.monotonic() - started)
        if name in ("install", "upgrade") and not self._request.app_url:
            self._checked = {service.name for service in run.deployer.state().services if service.health}
        if outcome.status in ("failed", "errored"):
            failed.append(name)

    def _outcome(self, run: stages.Run, name: StageName) -> Outcome:
        if self._request.app_url:
            return stages.own_tests(run, name, (name,))
        return self._install(run) if name == "install" else self._stage(run, name)

    @staticmethod
    def _stage(run: stages.Run, name: StageName) -> Outcome:
        outcome = stages.TABLE[name](run)
        return stages.stays_up(run, outcome) if outcome.status == "passed" else outcome

    def _given_up(self, version: str, problem: str) -> Outcome:
        """The outcome of an upgrade from a version that cannot be installed.

        Raises Stop if the commit's own settings, which apply to both versions, could be the cause.
        """
        without = "To test without an upgrade: !testme --stages install,backup,restore,custom"
        if self._prepared and (changed := self._prepared.resettled):
            raise Stop(
                Verdict.FAILED,
                f"The published version {version} does not work with the settings of this commit ({recipe_config.FILE} changes "
                f"{', '.join(changed)}), so its upgrade cannot be tested: {problem} {without}",
            )
        message = f"{version} can no longer be installed, so an upgrade from it cannot be tested: {problem}"
        self._journal.warn(message)
        return Outcome("skipped", f"{message} To upgrade from another version: !testme --from VERSION. {without}")

    def _install(self, run: stages.Run) -> Outcome:
        """Run the stage install on the published version if that works; otherwise on the commit, which may fix it."""
        if run.previous is None:
            return self._stage(run, StageName.INSTALL)
        try:
            outcome = self._stage(run, StageName.INSTALL)
        except stages.HookFailed as error:
            outcome = Outcome("failed", str(error))
        if outcome.status != "failed":
            return outcome
        self._without_previous(run, Stop(Verdict.FAILED, outcome.reason))
        self._put(run)
        return self._stage(run, StageName.INSTALL)

    def _start_clock(self, stage: str) -> None:
        limits = self._prepared.limits if self._prepared else self._request.limits
        self.deadlines.stage(stage, limits.stage_seconds)

    def _begin(self, name: str) -> None:
        self._start_clock(name)
        if name in self._results:
            self._results[name].started = datetime.now(UTC)
            self._journal.stage = name
            self._journal.event("stage_started", f"Stage {name}")

    def _end(self, name: str, outcome: Outcome, seconds: float) -> None:
        if name not in self._results:
            return
        started = self._results[name].started
        self._results[name] = concluded(name, outcome, seconds, started, self._journal)

    def _take_screenshot(self, run: stages.Run) -> None:
        if not (self._request.picture and self._answered) or run.config.picture.off or self.deadlines.cancelled:
            return
        # Decides nothing: a request to stop or a full disk is noticed by the next step.
        with self._journal.timed("picture"):
            try:
                artefacts.picture(run)
            except Exception as error:
                self._journal.log(f"No screenshot: {type(error).__name__}: {error}")

    def _save(self, deployer: Deployer, sha: str) -> list[str]:
        """Save the data of a run that passed. If that fails, the verdict stays: the recipe is not to blame."""
        target, most = self._folder.path / known_good.FOLDER, self._request.known_good_mb << 20
        self._journal.step("Saving the data for quick runs")
        self.deadlines.part("Saving the data", self._request.limits.stage_seconds)
        try:
            with self._journal.timed("save"):
                size = known_good.save(deployer, target, sha, most)
            self._journal.step(f"Saved {size >> 20} MB")
        except Exception as error:
            trees.remove(target)
            self._journal.step(f"The data was not saved for quick runs: {error}")
        return []

    def _teardown(self, verdict: Verdict) -> Teardown:
        """Save the data if it is wanted, remove the deployment, verify that it is gone, and remove the work folder.

        Never raises: the results come next.
        """
        started = time.monotonic()
        self._journal.stage = ""
        left: list[str] = []
        if self._deployer and self._deployed:
            artefacts.keep_logs(self._deployer, self._folder.path, self._journal)
        if self._deployer and self._request.keep:
            left += self._insist("keeping the deployment", partial(self._keep, self._deployer))
        elif self._deployer:
            reached = self._reached(self._deployer) if self._answered else None
            ready, wanted = self._prepared, self._request.known_good_mb and "save" in self._deployer.abilities
            if wanted and ready and self._deployed and verdict is Verdict.PASSED:
                self._insist("saving the data", partial(self._save, self._deployer, ready.sha))
            self._journal.step("Tearing down")
            with self._journal.timed("teardown"):
                left += self._insist("the teardown", self._deployer.teardown)
            if reached:
                left += self._insist("verifying the teardown", partial(self._still_there, self._deployer, *reached))
        left += self._insist("returning the realm", self._take_back)
        if self._known:
            self._known.release()
        if self._deployer:
            self._prune_images()
        if self._work.exists() and not trees.remove(self._work):
            left.append(f"files in {self._work}")
        seconds = round(time.monotonic() - started, 3)
        if self._deployer and not self._request.keep:
            self._journal.step(f"Torn down after {seconds:.1f} s" + (f"; left: {', '.join(left)}" if left else ""))
        return Teardown(clean=not left, left=left, seconds=seconds)

    @staticmethod
    def _insist(what: str, do: Callable[[], list[str]]) -> list[str]:
        """Run one part of the teardown. A bug of ours in it must hide neither the verdict nor the next part."""
        try:
            return do()
        except Exception as error:
            return [f"unknown leftovers: {what} crashed: {type(error).__name__}: {error}"]

    def _keep(self, deployer: Deployer) -> list[str]:
        reached = self._reached(deployer)
        self._journal.warn(f"Kept as requested: {deployer.keep()}")
        if reached and (asked := reached[0].typed(deployer.context.domain)):
            self._journal.warn(f"The app is at {reached[0]}. To reach it as its users do: {asked}")
        return []

    @staticmethod
    def _reached(deployer: Deployer) -> tuple[Address, str] | None:
        """Where the app can be reached, and from which local address."""
        try:
            address = deployer.address()
            return (address, address.way()) if address else None
        except Exception:  # the teardown comes next, and has to
            return None

    @staticmethod
    def _still_there(deployer: Deployer, address: Address, way: str) -> list[str]:
        # If the app's own network is gone with it, the address belongs to something else now.
        answer = probe(address, deployer.context.domain, timeout=1.0) if address.way() == way else None
        if answer and answer.from_app(address):
            # A response counts only if it stops with the app: some networks answer for any address.
            return [f"{address} still responds although the app is gone: something else answers there"]
        return []

    def _prune_images(self) -> None:
        wanted = self._request.images
        try:
            removed = images.prune(Path(wanted.ledger) if wanted.ledger else None, wanted.most_gb, wanted.keep)
        except Exception as error:  # images are not leftovers of the run, and the results come next
            self._journal.log(f"Could not remove old images: {error!r}")
            return
        if removed:
            self._journal.step(f"Removed images not used for a long time: {', '.join(removed)}")

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
                why = "The run ended before this stage." if self._deployed else "The recipe was not deployed."
                self._end(name, Outcome("skipped", why), 0.0)
        isolated, ready, run = bubblewrap.available(), self._prepared, self._run
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
            images=_images(ready) if ready else [],
            started=self._started,
            finished=datetime.now(UTC),
            stages=[self._results[name] for name in STAGES if name in self._results],
            teardown=teardown,
            timings=self._journal.timings,
            lint=lint.known_health(ready.lint, self._checked) if ready else [],
            extras=prepare.extras_of(ready, ran="extra" in self._results) if ready else Extras(),
            loosened=ready.loosened if ready else [],
            settings=self._settings(ready) if ready else "",
            kept=ready.kept.commit if ready and ready.kept else "",
            known_good=self._known.origin if self._known else None,
            changed=ready.changed if ready else [],
        )
        results.artefacts = artefacts.finish(self._folder, self._journal)
        results.secret_leaks = sorted(self._journal.leaks)
        if ready and not self._request.app_url:
            health = "app" in self._checked if results.deployer == SwarmDeployer.name else None
            connected = self._realm is not None
            results.metadata = readme.claims(ready.metadata, self._results, verdict, health=health, connected=connected)
        if not self._request.app_url:
            results.level = level.assess(self._results, results.lint if ready else None, verdict, results.secret_leaks)
        return results

    def _settings(self, ready: Prepared) -> str:
        """A digest of what decides how this commit is tested, besides the recipe itself and what the results name."""
        request = self._request.model_dump(mode="json", include={"upgrade_from", "trusted", "limits", "allow", "deployer"})
        config = ready.config.model_dump(mode="json")
        previous = ready.previous.commit if ready.previous else ""  # tags can be moved
        text = json.dumps([version("cc-ci"), request, config, self._realm is not None, previous], sort_keys=True)
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _images(ready: Prepared) -> list[ImageResult]:
    found = ready.context.images.items()
    return [ImageResult(name=name[:500], digest=one.digest, note=one.note) for name, one in found]


def _of(stop: Stop) -> Outcome:
    return Outcome("failed" if stop.verdict in (Verdict.FAILED, Verdict.TIMED_OUT) else "errored", stop.reason)
