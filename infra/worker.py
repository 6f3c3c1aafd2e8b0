"""The hands of whoever works on an upgrade: they hold its lease, announce what they do, and know what cc-ci itself put there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.utils import timezone

from controlplane.leases import Held
from infra import ownership, running, snapshots
from infra.deployers.base import DeployError
from infra.deployers.lasting import LastingDeployer, Part, Recorded
from infra.deployers.volumes import Volume
from infra.models import InfraApp, Upgrade
from infra.ownership import Allowed
from infra.states import CHANGING
from infra.upgrades_states import move, note

LEASE_SECONDS = 300.0
_LOOK_SECONDS = 1.0


class Lost(Exception):
    """Somebody else has the upgrade: stop, and change nothing more."""


class Contested(Exception):
    """What runs is not what cc-ci left there."""

    def __init__(self, changes: list[str]) -> None:
        super().__init__(" ".join(changes))
        self.changes = changes


class Failed(Exception):
    """The new version is not well."""


class WantedBack(Exception):
    """A person wants the old version back."""


class Worker:
    """One upgrade in the hands of one worker, which holds its lease."""

    def __init__(self, upgrade: Upgrade, held: Held, sleep: Callable[[float], None] = time.sleep) -> None:
        self.upgrade, self.held, self.sleep = upgrade, held, sleep
        self.app: InfraApp = upgrade.app
        self.folder = running.folder_of(upgrade)
        self._looked = self._renewed = 0.0
        self._wait = 0.0
        self._open: list[LastingDeployer] = []

    def check(self) -> None:
        """Called in every wait: holds the lease, and sees what others wrote. Raises Lost and WantedBack."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if now - self._renewed > LEASE_SECONDS / 10 or not self.held.is_mine():
            if not self.held.renew(LEASE_SECONDS):
                raise Lost
            self._renewed = now
        row = Upgrade.objects.filter(pk=self.upgrade.pk, fence=self.held.fence).values_list("state", "asked").first()
        if row is None or row[0] != self.upgrade.state:
            raise Lost
        if row[1].get("back") and row[0] in CHANGING:
            self.upgrade.asked = row[1]
            raise WantedBack(f"{row[1]['back']} wanted it back.")

    def log(self, text: str) -> None:
        """A line for people. A disk that is full costs the line, and never the way back."""
        with suppress(OSError), (self.folder / "log").open("a") as file:
            file.write(f"{timezone.now():%H:%M:%S} {running.without_secrets(self.app, text)}\n")

    def report(self, text: str) -> None:
        self.log(text)
        note(self.upgrade, "step", running.without_secrets(self.app, text))

    def _move(self, event: str, text: str, **fields: Any) -> None:
        if not move(self.upgrade, event, text, fence=self.held.fence, **fields):
            raise Lost
        self.log(f"{self.upgrade.state}: {text}")

    def _guard(self, name: str, **fields: Any) -> None:
        """Announce what is about to be done, if the app is still ours to change. Raises Lost, and what `check` raises."""
        self._announce(name, int(self.upgrade.step.get("tries", 0)), **fields)
        self._looked = 0.0
        self.check()

    def _announce(self, name: str, tries: int, **fields: Any) -> None:
        step = {"name": name, "at": timezone.now().isoformat(), "tries": tries}
        app = InfraApp.objects.filter(pk=self.app.pk, owner=InfraApp.Owner.RECONCILED, state=InfraApp.State.UPGRADING)
        rows = Upgrade.objects.filter(pk=self.upgrade.pk, fence=self.held.fence, state=self.upgrade.state, app__in=app)
        if not rows.update(step=step, **fields):
            raise Lost
        self.upgrade.step = step
        for field, value in fields.items():
            setattr(self.upgrade, field, value)

    def _remember(self, **facts: Any) -> None:
        """Write down what will be needed later. Raises Lost."""
        self.upgrade.facts = {**self.upgrade.facts, **facts}
        if not Upgrade.objects.filter(pk=self.upgrade.pk, fence=self.held.fence).update(facts=self.upgrade.facts):
            raise Lost

    def _deployer(self, which: str, seconds: int = running.SETTLE_SECONDS) -> LastingDeployer:
        """The app's deployer with the old or the new version's recipe."""
        files = running.checkout(self.app, self.upgrade.facts["commits"][which], self.folder / which)
        one = running.deployer_for(
            self.app,
            files,
            self.folder / "work",
            mark=self._mark(which),
            seconds=seconds,
            check=self.check,
            report=self.report,
            log=self.log,
        )
        self._open.append(one)
        one.know(files)
        return one

    def _close(self) -> None:
        while self._open:
            self._open.pop().close()

    def _mark(self, which: str) -> str:
        return f"u{self.upgrade.pk}-{which}"

    # -- what may run, and what ran --------------------------------------------------------------------------------------------

    def _look(self, deployer: LastingDeployer, *, missing: bool = False) -> dict[str, Part]:
        """The services now; they may be stopped, if `missing`. Raises Contested when somebody else has changed one of them.

        What cc-ci deployed itself is known by its fingerprint, and as long as that is not written down, by its mark.
        """
        parts = deployer.parts()
        self._only_ours(parts, missing=missing)
        return parts

    def _only_ours(self, parts: Mapping[str, Part], *, missing: bool = False) -> None:
        """Raises Contested, as `_look` does, for what was seen."""
        deployed: dict[str, dict[str, str]] = self.upgrade.facts.get("deployed", {})
        before = {name: part.fingerprint for name, part in self._before().items()}
        known: dict[str, set[str]] = {}
        for one in (before, *deployed.values()):
            for name, fingerprint in one.items():
                known.setdefault(name, set()).add(fingerprint)
        marks = {mark for mark in self.upgrade.facts.get("announced", []) if mark not in deployed}
        last = next((deployed[mark] for mark in reversed(self.upgrade.facts.get("announced", [])) if mark in deployed), before)
        if changes := ownership.foreign(parts, Allowed(known, () if missing else tuple(last), marks)):
            raise Contested(changes)

    def _put(self, deployer: LastingDeployer, which: str, version: str) -> None:
        """Deploy a version: announced before, and known by its fingerprints as soon as it stands there.

        What ran before comes back as it was recorded, spec by spec: the version's files may say less than what ran.
        """
        mark = self._mark(which)
        announced = [one for one in self.upgrade.facts.get("announced", []) if one != mark]
        facts = {**self.upgrade.facts, "announced": [*announced, mark]}
        self._guard("deploy", facts=facts, ran_new=self.upgrade.ran_new or which == "new")
        self.report(f"Deploying {version}")
        if recorded := self._recorded() if which == "old" else self._ran_once():
            deployer.restore_specs(self.folder / which, recorded)
        else:
            deployer.deploy(self.folder / which)
        parts = {name: part.fingerprint for name, part in deployer.parts().items()}
        self._remember(deployed={**self.upgrade.facts.get("deployed", {}), mark: parts})
        deployer.settle()

    def _docker_anew(self) -> bool:
        """Whether Docker was started anew since the upgrade began, or since it was looked at again."""
        before, now = self.upgrade.facts.get("docker_began", ""), self._docker_began()
        return bool(before and now and before != now)

    def _docker_began(self) -> str:
        """When Docker was started; empty when that cannot be told."""
        with suppress(DeployError):
            return next((deployer.docker_began() for deployer in self._open[-1:]), "")
        return ""

    def _before(self) -> dict[str, Part]:
        return running.known_parts(self.upgrade.baseline.get("parts", {}))

    def _recorded(self) -> Recorded:
        return recorded_by(self.upgrade)

    def _ran_once(self) -> Recorded | None:
        """How what is to be deployed ran once, where a person wants that back."""
        asked = self.upgrade.asked
        if asked.get("kind") == "restore-ours":
            return running.left(self.app)
        before = Upgrade.objects.filter(pk=asked.get("as_before")).first()
        return recorded_by(before) if before and before.specs else None

    @property
    def stateful(self) -> bool:
        return snapshots.is_stateful(self.app)

    def _copier(self, deployer: LastingDeployer) -> snapshots.Copier:
        return deployer.copier(self._copy_images())

    def _copy_images(self) -> Sequence[str]:
        """Images of this machine that volumes may be copied with."""
        return [*self._recorded().images.values(), *self._recorded().names.values()]

    def _pause(self, length: float) -> None:
        until = time.monotonic() + length
        while (left := until - time.monotonic()) > 0:
            self.check()
            self.sleep(min(left, 0.5))


def recorded_by(upgrade: Upgrade) -> Recorded:
    """What ran before an upgrade, as it was written down."""
    digests = upgrade.digests
    return Recorded(
        upgrade.specs,
        {name: image["id"] for name, image in digests.items() if image["id"]},
        {name: image["name"] for name, image in digests.items()},
        [Volume(**volume) for volume in upgrade.facts.get("volumes", [])],
        upgrade.facts.get("networks", {}),
    )


def differences(parts: Mapping[str, Part], before: Mapping[str, Part]) -> list[str]:
    """Where services are not what they were before, by their specs. (What is missing is for others to say.)"""
    found = [f"{name} was not there before" for name in sorted(set(parts) - set(before))]
    changed = [name for name, part in sorted(parts.items()) if name in before and part.fingerprint != before[name].fingerprint]
    return found + [f"the spec of {name} is not the one that was recorded" for name in changed]
