"""Carries out one upgrade, step by step. The row says how far it came, and whoever holds the lease goes on from there.

Every step begins with a conditional update on the app's owner and the fencing number, looks whether what runs is still what
cc-ci left there, and writes down what it is about to do before it does it. So a worker may be killed anywhere: the next one finds
the step, and what is there of it, and does it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import F
from django.template.defaultfilters import filesizeformat
from django.utils import timezone

from infra import alerts, evidence, health, ownership, running, snapshots
from infra.deployers.base import DeployError
from infra.deployers.lasting import LastingDeployer, Part
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.running import NotReachable
from infra.schema import Policy, seconds
from infra.snapshots import NotProved
from infra.states import UpgradeState
from infra.stores import StoreError
from infra.upgrades_states import note
from infra.worker import Contested, Failed, Lost, WantedBack, Worker, differences

S = UpgradeState
#: Pauses before what failed through no fault of the recipe is tried again: Docker may be starting anew.
PAUSES = (1.0, 5.0, 15.0, 30.0, 60.0)
#: The same on the way back, where there is no other way left: for about an hour.
PAUSES_BACK = (*PAUSES, *[120.0] * 30)
#: The longest pause between two looks in the soak, and the shortest; the soak has about 30 looks.
SAMPLE_SECONDS = (0.5, 15.0)
#: So many good samples in a row make a new version well, so many bad ones make it ill.
GOOD, BAD = 3, 3
#: So often may Docker be started anew in one soak.
DOCKER_STARTS = 3
#: What Docker, the disk or the network did, which may go by. All else is the version's own doing.
OURS = frozenset({"tool_failed", "tool_missing", "pull_failed"})
_ERRORS = (DeployError, NotReachable, StoreError, NotProved, OSError)


class Machine(Worker):
    """The steps of one upgrade."""

    looks = GOOD  #: so many good ones in a row make a new version well

    def run(self) -> None:
        """Go on until the upgrade has ended. Raises Lost, and DatabaseError, after which somebody else has to go on."""
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
            except Contested as error:
                self._stop_contested(error)
            except WantedBack as error:
                self._move("roll_back", str(error), reason=str(error), facts={**self.upgrade.facts, "blame": str(error)})
            except Exception as error:
                self.log(f"{type(error).__name__}: {error}")
                self._failed(error)
            finally:
                self._close()
        snapshots.scratch_rest(self.folder)

    # -- steps ----------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Record what runs, and have all at hand that either way needs. Nothing is changed yet."""
        app, asked = self.app, self.upgrade.asked
        if not app.ours:
            raise Failed(f"{app.name} is its maintainers'.")
        self._remember(commits=_commits(self.upgrade))
        old = self._deployer("old")
        parts = old.parts()
        if changes := ownership.foreign(parts, ownership.settled(app)):
            accepted = asked.get("accept") == running.fingerprint(part.fingerprint for part in parts.values())
            if not accepted:
                raise Contested(changes)
        elif app.state == InfraApp.State.CONTESTED and not asked.get("accept"):
            raise Failed(f"{app.name} is contested.")
        recorded = old.record()
        if missing := old.missing_images(recorded):
            raise Failed(f"The way back is not sure: {', '.join(missing)} is not on this machine.")
        samples = health.ask(old, running.checks_of(app), app.domain)
        sick = [*health.ill(parts), *(f"{sample.name}: {sample.said}" for sample in samples if not sample.ok)]
        if sick and not asked.get("sick"):
            raise Failed(f"It is not well as it is: {'; '.join(sick)}")
        new = self._deployer("new")
        self.report(f"Having the images of {self.upgrade.to_version} here")
        new.fetch(self.folder / "new")
        settle = settle_seconds(app, max(old.timeout(self.folder / "old"), new.timeout(self.folder / "new")))
        baseline = {"parts": running.parts_as_rows(parts), "probes": {s.name: s.ok for s in samples}}
        digests = {name: {"name": recorded.names[name], "id": recorded.images.get(name, "")} for name in recorded.names}
        volumes = [volume.as_dict() for volume in recorded.volumes]
        with transaction.atomic():
            taken = InfraApp.objects.filter(
                pk=app.pk, fence=app.fence, owner=InfraApp.Owner.RECONCILED, declared=True, state=app.state
            ).exclude(state=InfraApp.State.UPGRADING)
            if not taken.update(state=InfraApp.State.UPGRADING, fence=F("fence") + 1, contested={}):
                raise Failed("The app was changed in this moment.")
            self._move(
                "snapshot",
                f"{len(parts)} services of {self.upgrade.from_version}, {len(volumes)} volumes, {len(samples)} probes recorded.",
                specs=recorded.specs,
                digests=digests,
                baseline=baseline,
                facts={
                    **self.upgrade.facts,
                    "volumes": volumes,
                    "networks": dict(recorded.networks),
                    "docker_began": self._docker_began(),
                    "settle_seconds": settle,
                },
                step={"name": "recorded"},
            )
        app.refresh_from_db()

    def _snapshot(self) -> None:
        self._guard("look")
        old = self._deployer("old")
        self._look(old, missing=True)
        snapshot: Snapshot | None = None
        words = "It keeps no data."
        if self.stateful:
            self._guard("stop")
            self.report("Stopping it")
            old.undeploy()
            self._guard("snapshot")
            self.report("Copying its volumes")
            started = time.monotonic()
            volumes = self._recorded().volumes
            snapshot = snapshots.take(self.app, self.upgrade, volumes, self._copier(old), self.check)
            volumes_copied = f"{len(volumes)} volume{'s' if len(volumes) != 1 else ''}"
            size = filesizeformat(snapshot.bytes)
            words = f"Snapshot of {volumes_copied}, {size}, proved after {time.monotonic() - started:.1f} s."
        self._move("deploy", words, snapshot=snapshot, step={})

    def _deploy(self) -> None:
        self._guard("look")
        new = self._deployer("new", self.upgrade.facts["settle_seconds"])
        self._look(new, missing=True)
        if data := self.upgrade.asked.get("data"):
            self._guard("data", ran_new=True)
            self._put_back(new, Snapshot.objects.get(pk=data))
        started = time.monotonic()
        self._put(new, "new", self.upgrade.to_version)
        took = time.monotonic() - started
        parts = self._look(new)
        self._remember(settled_after=round(took, 1), services=sorted(parts))
        self._move("verify", f"Settled after {took:.1f} s.", step={})

    def _verify(self) -> None:
        self._guard("verify")
        parts = self._until_well(self._deployer("new"))
        probes = len(running.checks_of(self.app))
        self._move("soak", f"{len(parts)} services and {probes} probes are well, {self.looks} times in a row.")

    def _until_well(self, new: LastingDeployer) -> dict[str, Part]:
        """Wait for good looks in a row, and note the tasks that run then. Raises Failed."""
        until = time.monotonic() + self.upgrade.facts["settle_seconds"]
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

    def _sample(self, new: LastingDeployer) -> tuple[dict[str, Part], list[str]]:
        """Look once. Raises Failed for what never becomes well again, and Contested."""
        parts = new.parts()
        gone = health.wrong(parts, self.upgrade.to_version, new.mark, self.upgrade.facts["services"])
        self._only_ours(parts, missing=bool(gone))  # somebody's hand, or Swarm's own
        if gone:
            raise Failed("; ".join(gone))
        samples = health.ask(new, running.checks_of(self.app), self.app.domain)
        problems = [*health.ill(parts), *health.worse(samples, self.upgrade.baseline["probes"])]
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
        soak = int(self.upgrade.asked.get("soak", seconds(Policy.model_validate(self.app.policy).soak)))
        pause = min(max(soak / 30, SAMPLE_SECONDS[0]), SAMPLE_SECONDS[1])
        bad = 0
        parts: dict[str, Part] = {}
        while True:
            left = soak - (timezone.now() - self._soaking_since()).total_seconds()
            parts, problems = self._sample(new)
            died = health.restarted(parts, self.upgrade.facts["tasks"])
            if (died or problems) and self._docker_anew():
                self._look_again(new)
                bad = 0
                continue
            if died:
                raise Failed(f"In the soak: {'; '.join(died)}")
            bad = bad + 1 if problems else 0
            if bad >= BAD:
                raise Failed(f"In the soak: {'; '.join(problems)}")
            if left <= 0 and not bad:
                break
            self._pause(min(pause, max(left, SAMPLE_SECONDS[0])))
        self._guard("pin")
        if problem := ownership.write_pin(self.app, self.upgrade.to_version):
            self.report(" ".join(problem))
        self._finish("succeed", new, self.upgrade.to_version, f"Well for {soak} s.")
        if self.upgrade.asked.get("kind") == "rollback":
            evidence.quarantine(self.upgrade, self.upgrade.from_version, str(self.upgrade.trigger))
        for left_over in snapshots.prune(self.app) if self.upgrade.from_version else ():
            self.report(f"Not dropped: {left_over}")

    def _soaking_since(self) -> datetime:
        assert self.upgrade.state_at
        again = self.upgrade.facts.get("soaking_since")
        return datetime.fromisoformat(again) if again else self.upgrade.state_at

    def _look_again(self, new: LastingDeployer) -> None:
        """Docker was started anew, and all tasks with it: that is not the version's doing, and the soak begins again."""
        began, times = self._docker_began(), int(self.upgrade.facts.get("docker_starts", 0)) + 1
        if times > DOCKER_STARTS:
            raise NotReachable(f"Docker was started anew {times} times while {self.upgrade.to_version} was watched.")
        self.report("Docker was started anew, and all tasks with it: looking again from now on")
        self._until_well(new)
        self._remember(docker_began=began, docker_starts=times, soaking_since=timezone.now().isoformat())

    # -- the way back -----------------------------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        """The whole stack as it was: every service of the old version, and the data, if the new one may have touched it."""
        self._guard("look back")
        old = self._deployer("old", self.upgrade.facts.get("settle_seconds", running.SETTLE_SECONDS))
        self._look(old, missing=True)
        if "logs" not in self.upgrade.facts:
            self._remember(**evidence.collect(old, lambda text: running.without_secrets(self.app, text)))
        old.name_images(self._recorded())
        snapshot = self.upgrade.snapshot
        if self.upgrade.ran_new and snapshot and not self.upgrade.facts.get("data_back"):
            self._put_back(old, snapshot)
            self._remember(data_back=True)
        self._put(old, "old", self.upgrade.from_version)
        self._verify_back(old)
        self._finish("rolled_back", old, self.upgrade.from_version, self.upgrade.reason)
        words = (
            f"{self.app.name} runs {self.upgrade.from_version} again, {self.upgrade.to_version} did not do: {self.upgrade.reason}"
        )
        if self.upgrade.facts.get("blame"):
            evidence.quarantine(self.upgrade, self.upgrade.to_version, self.upgrade.reason)
        alerts.tell("rolled_back", self.app, words, key=str(self.upgrade.pk))

    def _put_back(self, deployer: LastingDeployer, snapshot: Snapshot) -> None:
        self._guard("stop for the data")
        self.report("Stopping it")
        deployer.undeploy()
        self._guard("data")
        self.report(f"Putting back the data of {snapshot}")
        snapshots.put_back(snapshot, self._copier(deployer), self.check)

    def _verify_back(self, old: LastingDeployer) -> None:
        """By the same checks, against the same baseline. Raises Failed."""
        until = time.monotonic() + self.upgrade.facts.get("settle_seconds", running.SETTLE_SECONDS)
        good = 0
        while good < GOOD:
            parts = self._look(old)
            samples = health.ask(old, running.checks_of(self.app), self.app.domain)
            problems = [
                *health.wrong(parts, self.upgrade.from_version, old.mark, self.upgrade.specs),
                *health.ill(parts),
                *health.worse(samples, self.upgrade.baseline.get("probes", {})),
                *differences(parts, self._before()),
            ]
            good = 0 if problems else good + 1
            if problems and time.monotonic() > until:
                raise Failed("; ".join(problems))
            if good < GOOD:
                self._pause(SAMPLE_SECONDS[0])

    # -- ends -------------------------------------------------------------------------------------------------------------------

    def _finish(self, event: str, deployer: LastingDeployer, version: str, text: str) -> None:
        """The app has come to rest at `version`: all that is known of it, and the upgrade's end, in one transaction."""
        seen = running.seen_by(deployer, full=True)
        self._only_ours(seen.parts)
        values = {**seen.columns(), "running_version": version}
        if event == "succeed":
            values["pinned_version"] = version
        with transaction.atomic():
            app = InfraApp.objects.filter(pk=self.app.pk, owner=InfraApp.Owner.RECONCILED, state=InfraApp.State.UPGRADING)
            if not app.update(state=InfraApp.State.SETTLED, fence=F("fence") + 1, **values):
                raise Lost
            self._move(event, text)
        self.app.refresh_from_db()

    def _failed(self, error: Exception) -> None:
        """A step did not do: try it again when that may help, else back, and when that fails, stop."""
        upgrade, reason = self.upgrade, running.without_secrets(self.app, str(error) or type(error).__name__)
        back = upgrade.state == S.ROLLING_BACK
        pauses = PAUSES_BACK if back else PAUSES
        tries = int(upgrade.step.get("tries", 0))
        # On the way back a full disk is waited for as well, and what the old version says against itself is asked twice.
        patient = _may_go_by(error) or (back and _ours(error))
        most = len(pauses) if patient else int(back and not isinstance(error, Failed))
        if upgrade.state != S.APPROVED and tries < most:
            self.report(f"{reason} Trying again in {pauses[tries]:g} s.")
            self._announce(str(upgrade.step.get("name", "")), tries + 1)
            self._wait = pauses[tries]
            return
        self._wait = 0.0
        if upgrade.state == S.APPROVED:
            self._move("fail", reason, reason=reason)
            alerts.tell("failed", self.app, f"The upgrade to {upgrade.to_version} did not begin: {reason}", key=str(upgrade.pk))
        elif back:
            self._give_up(reason)
        else:
            another = upgrade.to_version != upgrade.from_version
            # Swarm itself takes a Docker that is started anew in mid-update for the version's failure.
            innocent = upgrade.state == S.SNAPSHOTTING or _ours(error) or self._docker_anew()
            blame = reason if another and not innocent else ""
            facts = {**upgrade.facts, "blame": blame, "failed_in": upgrade.state}
            self._move("roll_back", reason, reason=reason, facts=facts, step={})

    def _give_up(self, reason: str) -> None:
        """The way back failed, too: everything is kept, nothing more is touched, and people are told loudly."""
        said = f"{self.upgrade.reason} And the way back failed: {reason} Nothing more is touched."
        kept = f" The data before is in the snapshot {self.upgrade.snapshot.location}." if self.upgrade.snapshot else ""
        values = self._last_look()
        with transaction.atomic():
            rows = InfraApp.objects.filter(pk=self.app.pk, state=InfraApp.State.UPGRADING)
            rows.update(state=InfraApp.State.SETTLED, fence=F("fence") + 1, **values)
            self._move("rollback_failed", said + kept, reason=said + kept)
        if self.upgrade.facts.get("blame"):
            evidence.quarantine(self.upgrade, self.upgrade.to_version, said)
        alerts.tell("rollback_failed", self.app, f"{self.app.name}: {said}{kept}", key=str(self.upgrade.pk))

    def _last_look(self) -> dict[str, Any]:
        """The app as it is now, so that a hand that mends it shows. Empty when it cannot be seen."""
        try:
            return running.see(self.app).columns()
        except _ERRORS as error:
            self.log(f"A last look: {error}")
            return {}

    def _stop_contested(self, error: Contested) -> None:
        """Somebody else changed the app: nothing is done any more, not even back."""
        upgrade = self.upgrade
        reason = f"Contested: {error}"
        seen = running.see(self.app)
        with transaction.atomic():
            rows = InfraApp.objects.filter(pk=self.app.pk, owner=InfraApp.Owner.RECONCILED)
            if upgrade.state == S.APPROVED:
                self._move("fail", reason, reason=reason)
            else:
                if upgrade.state != S.ROLLING_BACK:
                    self._move("roll_back", reason, reason=reason)
                self._move("rollback_failed", "Nothing was touched any more.", reason=reason)
            ownership.contest(self.app, seen, error.changes, rows=rows)


def _may_go_by(error: Exception) -> bool:
    return isinstance(error, DeployError) and error.kind in OURS


def _ours(error: Exception) -> bool:
    """Whether the version itself is not to blame."""
    return _may_go_by(error) or isinstance(error, (OSError, StoreError, NotProved, NotReachable))


def _commits(upgrade: Upgrade) -> dict[str, str]:
    """The commits of both versions. Raises Failed: without the old one there is no way back."""
    found = {}
    for which, version in (("old", upgrade.from_version), ("new", upgrade.to_version)):
        row = InfraRelease.objects.filter(app=upgrade.app, version=version).first()
        if row is None or not row.commit:
            what = "there is no way back" if which == "old" else "it cannot be deployed"
            raise Failed(f"No release {version or '(unknown)'} of {upgrade.app.recipe} is known, so {what}.")
        found[which] = row.commit
    last = upgrade.app.upgrades.filter(state=S.SUCCEEDED, to_version=upgrade.from_version).first()
    if last and (commit := last.facts.get("commits", {}).get("new")):
        found["old"] = commit  # as it was deployed, should the tag have been moved since
    return found


def settle_seconds(app: InfraApp, asked: int) -> int:
    """The larger of what the recipe asks for and twice its slowest success so far."""
    rows = app.upgrades.filter(state=S.SUCCEEDED).values_list("facts", flat=True)[:20]
    slowest = max((float(facts.get("settled_after", 0)) for facts in rows), default=0.0)
    return int(max(asked or running.SETTLE_SECONDS, 2 * slowest))
