"""Executes one upgrade, step by step. The row records its progress; whoever holds the lease resumes from there.

Every step starts with a conditional update on the app's owner and the fencing number, checks that what runs is still what
cc-ci deployed, and records each intent before it acts. So a worker may be killed at any point: the next one finds the step
and what exists of it, and repeats it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.db import DatabaseError, transaction
from django.template.defaultfilters import filesizeformat
from django.utils import timezone

from infra import alerts
from infra.config.schema import Policy, seconds
from infra.deployers.errors import DeployError
from infra.deployers.swarm.persistent import PersistentDeployer, ServiceState
from infra.lifecycle import move_app, note, with_facts
from infra.models import InfraApp, Snapshot, Upgrade
from infra.runtime import drift, health, inspect
from infra.runtime.inspect import NotReachable
from infra.snapshots import snapshot as snapshots
from infra.snapshots.snapshot import NotProved
from infra.snapshots.stores import StoreError
from infra.states import UpgradeState
from infra.upgrades import quarantine
from infra.upgrades.session import Failed, Lost, RollbackRequested, UnexpectedChanges, UpgradeSession, differences

S = UpgradeState
#: Pauses before retries of what is not the recipe's fault: Docker may be restarting.
PAUSES = (1.0, 5.0, 15.0, 30.0, 60.0)
#: The same during a rollback, which has no alternative: about an hour.
PAUSES_BACK = (*PAUSES, *[120.0] * 30)
#: The shortest and the longest pause between two samples of the soak, which has about 30.
SAMPLE_SECONDS = (0.5, 15.0)
#: How many good samples in a row make a new version healthy, how many bad ones unhealthy.
GOOD, BAD = 3, 3
#: How often Docker may restart during one soak.
DOCKER_STARTS = 3
#: Faults of Docker, the disk or the network, which may pass. Everything else is the version's fault.
OURS = frozenset({"tool_failed", "tool_missing", "pull_failed", "image_denied", "image_missing", "no_address", "disk_full"})
_ERRORS = (DeployError, NotReachable, StoreError, NotProved, OSError)


class UpgradeExecutor(UpgradeSession):
    """The steps of one upgrade."""

    looks = GOOD  #: good samples in a row that make a new version healthy

    def run(self) -> None:
        """Run until the upgrade has ended. Raises Lost, and DatabaseError, after which another worker resumes it."""
        steps: Mapping[str, Callable[[], None]] = {
            S.APPROVED: self._begin,
            S.SNAPSHOTTING: self._snapshot,
            S.DEPLOYING: self._deploy,
            S.VERIFYING: self._verify,
            S.SOAKING: self._soak,
            S.ROLLING_BACK: self._roll_back,
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        while step := steps.get(self.upgrade.state):
            try:
                self._looked = 0.0
                self.check()
                self._pause(self._wait)
                step()
            except (Lost, DatabaseError):
                raise
            except UnexpectedChanges as error:
                self._stop_for_drift(error)
            except RollbackRequested as error:
                self._move("roll_back", str(error), reason=str(error), facts=with_facts(self.upgrade, blame=str(error)))
            except Exception as error:
                self.log(f"{type(error).__name__}: {error}")
                self._failed(error)
            finally:
                self._close()
        snapshots.scratch_rest(self.folder)

    # -- steps ----------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Record what runs, and fetch all that an upgrade and a rollback need. Changes nothing yet."""
        app, request = self.app, self.upgrade.request
        if not app.ours:
            raise Failed(f"{app.name} is managed by its maintainers.")
        self._remember(commits=_commits(self.upgrade))
        old = self._deployer("old")
        parts = old.parts()
        if changes := drift.unexpected(parts, drift.settled(app)):
            accepted = request.accept == inspect.fingerprint(part.fingerprint for part in parts.values())
            if not accepted:
                raise UnexpectedChanges(changes)
        elif app.state == InfraApp.State.DRIFTED and not request.accept:
            raise Failed(f"{app.name} has drifted.")
        recorded = old.record()
        if missing := old.missing_images(recorded):
            raise Failed(f"Rollback is not possible: {', '.join(missing)} is missing on this host.")
        samples = health.ask(old, inspect.checks_of(app), app.domain)
        problems = [*health.unhealthy(parts), *(f"{sample.name}: {sample.said}" for sample in samples if not sample.ok)]
        if problems and not request.sick:
            raise Failed(f"The app is already unhealthy: {'; '.join(problems)}")
        new = self._deployer("new")
        self.report(f"Fetching the images of {self.upgrade.to_version}")
        new.fetch(self.folder / "new")
        settle = settle_seconds(app, max(old.timeout(self.folder / "old"), new.timeout(self.folder / "new")))
        baseline = {"parts": inspect.parts_as_rows(parts), "probes": {s.name: s.ok for s in samples}}
        digests = {name: {"name": recorded.names[name], "id": recorded.images.get(name, "")} for name in recorded.names}
        volumes = [volume.as_dict() for volume in recorded.volumes]
        with transaction.atomic():
            self._take_app()
            self._move(
                "snapshot",
                f"Recorded {len(parts)} services of {self.upgrade.from_version}, {len(volumes)} volumes, {len(samples)} probes.",
                specs=recorded.specs,
                digests=digests,
                baseline=baseline,
                facts=with_facts(
                    self.upgrade,
                    volumes=volumes,
                    networks=dict(recorded.networks),
                    docker_began=self._docker_began(),
                    settle_seconds=settle,
                ),
                step={"name": "recorded"},
            )

    def _take_app(self, **fields: Any) -> None:
        if not move_app(self.app, "upgrade", contested={}, **fields):
            raise Failed("The app was modified concurrently; try again.")

    def _snapshot(self) -> None:
        self._guard("look")
        old = self._deployer("old")
        self._inspect(old, missing=True)
        snapshot: Snapshot | None = None
        words = "No snapshot: the app keeps no data."
        if self.stateful:
            self._guard("stop")
            self.report("Stopping the app")
            old.undeploy()
            self._guard("snapshot")
            self.report("Copying its volumes")
            started = time.monotonic()
            volumes = self._recorded().volumes
            snapshot = snapshots.take(self.app, self.upgrade, volumes, self._copier(old), self.check)
            volumes_copied = f"{len(volumes)} volume{'s' if len(volumes) != 1 else ''}"
            size = filesizeformat(snapshot.bytes)
            words = f"Snapshot of {volumes_copied}, {size}, verified after {time.monotonic() - started:.1f} s."
        self._move("deploy", words, snapshot=snapshot, step={})

    def _deploy(self) -> None:
        self._guard("look")
        new = self._deployer("new", self._settle_seconds)
        self._inspect(new, missing=True)
        if data := self.upgrade.request.data:
            self._guard("data", ran_new=True)
            self._put_back(new, Snapshot.objects.get(pk=data))
        started = time.monotonic()
        self._put(new, "new", self.upgrade.to_version)
        took = time.monotonic() - started
        parts = self._inspect(new)
        self._remember(settled_after=round(took, 1), services=sorted(parts))
        self._move("verify", f"Converged after {took:.1f} s.", step={})

    @property
    def _settle_seconds(self) -> int:
        return self.upgrade.found.settle_seconds or inspect.SETTLE_SECONDS

    def _verify(self) -> None:
        self._guard("verify")
        parts = self._until_well(self._deployer("new"))
        probes = len(inspect.checks_of(self.app))
        self._move("soak", f"{len(parts)} services and {probes} probes are healthy, {self.looks} times in a row.")

    def _until_well(self, new: PersistentDeployer) -> dict[str, ServiceState]:
        """Wait for enough good samples in a row, and record the tasks that run then. Raises Failed."""
        until = time.monotonic() + self._settle_seconds
        good = 0
        while good < self.looks:
            parts, problems = self._sample(new)
            good = 0 if problems else good + 1
            if problems and time.monotonic() > until:
                raise Failed("; ".join(problems))
            if good < self.looks:
                self._pause(SAMPLE_SECONDS[0])
        self._remember(tasks={name: list(part.tasks) for name, part in parts.items()})
        return parts

    def _sample(self, new: PersistentDeployer) -> tuple[dict[str, ServiceState], list[str]]:
        """Take one sample. Raises Failed for what cannot recover, and UnexpectedChanges."""
        parts = new.parts()
        gone = health.wrong(parts, self.upgrade.to_version, new.mark, self.upgrade.found.services)
        self._only_ours(parts, missing=bool(gone))  # a person's change, or Swarm's
        if gone:
            raise Failed("; ".join(gone))
        samples = health.ask(new, inspect.checks_of(self.app), self.app.domain)
        problems = [*health.unhealthy(parts), *health.worse(samples, self.upgrade.baseline["probes"])]
        note(
            self.upgrade,
            "sample",
            "; ".join(problems)[:1000],
            probes=[sample.as_dict() for sample in samples],
            running={name: f"{part.running}/{part.wanted}" for name, part in parts.items()},
        )
        return parts, problems

    def _soak(self) -> None:
        self._guard("soak")
        new = self._deployer("new")
        asked = self.upgrade.request.soak
        soak = seconds(Policy.model_validate(self.app.policy).soak) if asked is None else asked
        pause = min(max(soak / 30, SAMPLE_SECONDS[0]), SAMPLE_SECONDS[1])
        bad = 0
        parts: dict[str, ServiceState] = {}
        while True:
            left = soak - (timezone.now() - self._soaking_since()).total_seconds()
            parts, problems = self._sample(new)
            died = health.restarted(parts, self.upgrade.found.tasks)
            if (died or problems) and self._docker_restarted():
                self._verify_again(new)
                bad = 0
                continue
            if died:
                raise Failed(f"During the soak: {'; '.join(died)}")
            bad = bad + 1 if problems else 0
            if bad >= BAD:
                raise Failed(f"During the soak: {'; '.join(problems)}")
            if left <= 0 and not bad:
                break
            self._pause(min(pause, max(left, SAMPLE_SECONDS[0])))
        self._guard("pin")
        if problem := drift.write_pin(self.app, self.upgrade.to_version):
            self.report(" ".join(problem))
        self._finish("succeed", new, self.upgrade.to_version, f"Healthy for {soak} s.")
        if self.upgrade.request.kind == "rollback":
            quarantine.quarantine(self.upgrade, self.upgrade.from_version, self.upgrade.trigger)
        for left_over in snapshots.prune(self.app) if self.upgrade.from_version else ():
            self.report(f"Not deleted: {left_over}")

    def _soaking_since(self) -> datetime:
        assert self.upgrade.state_at
        again = self.upgrade.found.soaking_since
        return datetime.fromisoformat(again) if again else self.upgrade.state_at

    def _verify_again(self, new: PersistentDeployer) -> None:
        """Docker restarted, and all tasks with it: not the version's fault. The soak starts over."""
        began, times = self._docker_began(), self.upgrade.found.docker_starts + 1
        if times > DOCKER_STARTS:
            raise NotReachable(f"Docker restarted {times} times while {self.upgrade.to_version} was being watched.")
        self.report("Docker restarted, and all tasks with it: verifying again")
        self._until_well(new)
        self._remember(docker_began=began, docker_starts=times, soaking_since=timezone.now().isoformat())

    # -- rollback ---------------------------------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        """Restore the whole stack: every service of the old version, and the data, if the new version may have written to it."""
        self._guard("look back")
        old = self._deployer("old", self._settle_seconds)
        self._inspect(old, missing=True)
        if self.upgrade.found.logs is None:
            self._remember(**quarantine.collect(old, lambda text: inspect.without_secrets(self.app, text)))
        old.name_images(self._recorded())
        snapshot = self.upgrade.snapshot
        if self.upgrade.ran_new and snapshot and not self.upgrade.found.data_back:
            self._put_back(old, snapshot)
            self._remember(data_back=True)
        self._put(old, "old", self.upgrade.from_version)
        self._verify_back(old)
        self._finish("rolled_back", old, self.upgrade.from_version, self.upgrade.reason)
        words = (
            f"Rolled back {self.app.name} to {self.upgrade.from_version}; the upgrade to {self.upgrade.to_version} "
            f"failed: {self.upgrade.reason}"
        )
        if self.upgrade.found.blame:
            quarantine.quarantine(self.upgrade, self.upgrade.to_version, self.upgrade.reason)
        alerts.tell("rolled_back", self.app, words, key=str(self.upgrade.pk))

    def _put_back(self, deployer: PersistentDeployer, snapshot: Snapshot) -> None:
        self._guard("stop for the data")
        self.report("Stopping the app")
        deployer.undeploy()
        self._guard("data")
        self.report(f"Restoring the data of {snapshot}")
        snapshots.put_back(snapshot, self._copier(deployer), self.check)

    def _verify_back(self, old: PersistentDeployer) -> None:
        """Verify by the same checks, against the same baseline. Raises Failed."""
        until = time.monotonic() + self._settle_seconds
        good = 0
        while good < GOOD:
            parts = self._inspect(old)
            samples = health.ask(old, inspect.checks_of(self.app), self.app.domain)
            problems = [
                *health.wrong(parts, self.upgrade.from_version, old.mark, self.upgrade.specs),
                *health.unhealthy(parts),
                *health.worse(samples, self.upgrade.baseline.get("probes", {})),
                *differences(parts, self._before()),
            ]
            good = 0 if problems else good + 1
            if problems and time.monotonic() > until:
                raise Failed("; ".join(problems))
            if good < GOOD:
                self._pause(SAMPLE_SECONDS[0])

    # -- ends -------------------------------------------------------------------------------------------------------------------

    def _finish(self, event: str, deployer: PersistentDeployer, version: str, text: str) -> None:
        """The app has converged at `version`: record it and the end of the upgrade in one transaction."""
        seen = inspect.seen_by(deployer, full=True)
        self._only_ours(seen.parts)
        values = {**seen.columns(), "running_version": version}
        if event == "succeed":
            values["pinned_version"] = version
        with transaction.atomic():
            if not move_app(self.app, "settle", **values):
                raise Lost
            self._move(event, text)

    def _failed(self, error: Exception) -> None:
        """A step failed: retry it if that may help, else roll back; if a rollback fails, stop."""
        upgrade, reason = self.upgrade, inspect.without_secrets(self.app, str(error) or type(error).__name__)
        back = upgrade.state == S.ROLLING_BACK
        pauses = PAUSES_BACK if back else PAUSES
        tries = int(upgrade.step.get("tries", 0))
        # A rollback also waits for a full disk, and retries a failed deployment of the old version once.
        patient = _may_go_by(error) or (back and _ours(error))
        most = len(pauses) if patient else int(back and not isinstance(error, Failed))
        if upgrade.state != S.APPROVED and tries < most:
            self.report(f"{reason} Retrying in {pauses[tries]:g} s.")
            self._announce(str(upgrade.step.get("name", "")), tries + 1)
            self._wait = pauses[tries]
            return
        self._wait = 0.0
        if upgrade.state == S.APPROVED:
            self._move("fail", reason, reason=reason)
            alerts.tell("failed", self.app, f"The upgrade to {upgrade.to_version} did not start: {reason}", key=str(upgrade.pk))
        elif back:
            self._give_up(reason)
        else:
            another = upgrade.to_version != upgrade.from_version
            # Swarm mistakes a restart of Docker during an update for a failure of the version.
            innocent = upgrade.state == S.SNAPSHOTTING or _ours(error) or self._docker_restarted()
            blame = reason if another and not innocent else ""
            facts = with_facts(upgrade, blame=blame, failed_in=upgrade.state)
            self._move("roll_back", reason, reason=reason, facts=facts, step={})

    def _give_up(self, reason: str) -> None:
        """The rollback failed, too: keep everything, touch nothing more, and alert people."""
        said = f"{self.upgrade.reason} The rollback failed, too: {reason} cc-ci leaves the app as it is."
        kept = f" The data from before is in the snapshot {self.upgrade.snapshot.location}." if self.upgrade.snapshot else ""
        values = self._last_inspection()
        with transaction.atomic():
            move_app(self.app, "settle", **values)
            self._move("rollback_failed", said + kept, reason=said + kept)
        if self.upgrade.found.blame:
            quarantine.quarantine(self.upgrade, self.upgrade.to_version, said)
        alerts.tell("rollback_failed", self.app, f"{self.app.name}: {said}{kept}", key=str(self.upgrade.pk))

    def _last_inspection(self) -> dict[str, Any]:
        """The app as it is now, so that a manual repair is noticed. Empty if it cannot be inspected."""
        try:
            return inspect.see(self.app).columns()
        except _ERRORS as error:
            self.log(f"Cannot inspect the app: {error}")
            return {}

    def _stop_for_drift(self, error: UnexpectedChanges) -> None:
        """The app was changed outside cc-ci: stop, without even a rollback."""
        upgrade = self.upgrade
        reason = f"The app has drifted: {error}"
        seen = inspect.see(self.app)
        with transaction.atomic():
            if upgrade.state == S.APPROVED:
                self._move("fail", reason, reason=reason)
            else:
                if upgrade.state != S.ROLLING_BACK:
                    self._move("roll_back", reason, reason=reason)
                self._move("rollback_failed", "Stopped without touching anything else.", reason=reason)
            drift.record(self.app, seen, error.changes)


def _may_go_by(error: Exception) -> bool:
    return isinstance(error, DeployError) and error.kind in OURS


def _ours(error: Exception) -> bool:
    """Whether the version itself is not to blame."""
    return _may_go_by(error) or isinstance(error, (OSError, StoreError, NotProved, NotReachable))


def _commits(upgrade: Upgrade) -> dict[str, str]:
    """The commits of both versions. Raises Failed: without the old one no rollback is possible."""
    found = {}
    for which, version in (("old", upgrade.from_version), ("new", upgrade.to_version)):
        row = upgrade.app.release(version)
        if row is None or not row.commit:
            what = "a rollback is not possible" if which == "old" else "it cannot be deployed"
            raise Failed(f"No release {version or '(unknown)'} of {upgrade.app.recipe} is known, so {what}.")
        found[which] = row.commit
    last = upgrade.app.upgrades.filter(state=S.SUCCEEDED, to_version=upgrade.from_version).first()
    if last and (commit := last.found.commits.get("new")):
        found["old"] = commit  # as deployed, in case the tag was moved since
    return found


def settle_seconds(app: InfraApp, asked: int) -> int:
    """The larger of the recipe's timeout and twice its slowest success so far, in seconds."""
    slowest = max((row.found.settled_after for row in app.upgrades.filter(state=S.SUCCEEDED)[:20]), default=0.0)
    return int(max(asked or inspect.SETTLE_SECONDS, 2 * slowest))
