"""One worker's session on an upgrade: holds the lease, records intent, detects drift."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.utils import timezone

from controlplane.leases import Held
from infra.deployers.docker.volumes import Volume, Volumes
from infra.deployers.errors import DeployError
from infra.deployers.swarm.persistent import PersistentDeployer, ServiceState, StackBaseline
from infra.lifecycle import announce, move, note, remember, with_facts
from infra.models import InfraApp, Upgrade
from infra.runtime import drift, inspect
from infra.runtime.drift import Allowed
from infra.snapshots import snapshot
from infra.states import CHANGING

LEASE_SECONDS = 300.0
_LOOK_SECONDS = 1.0


class Lost(Exception):
    """Another worker has the upgrade: stop, and change nothing more."""


class UnexpectedChanges(Exception):
    """What runs is not what cc-ci deployed."""

    def __init__(self, changes: list[str]) -> None:
        super().__init__(" ".join(changes))
        self.changes = changes


class Failed(Exception):
    """The new version is unhealthy."""


class RollbackRequested(Exception):
    """A person requested a rollback."""


class UpgradeSession:
    """One worker's work on one upgrade, under its lease."""

    def __init__(self, upgrade: Upgrade, held: Held, sleep: Callable[[float], None] = time.sleep) -> None:
        self.upgrade, self.held, self.sleep = upgrade, held, sleep
        self.app: InfraApp = upgrade.app
        self.folder = inspect.folder_of(upgrade)
        self._looked = self._renewed = 0.0
        self._wait = 0.0
        self._open: list[PersistentDeployer] = []

    def check(self) -> None:
        """Called in every wait: renews the lease, and reads what others wrote. Raises Lost and RollbackRequested."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if now - self._renewed > LEASE_SECONDS / 10 or not self.held.is_mine():
            if not self.held.renew(LEASE_SECONDS):
                raise Lost
            self._renewed = now
        row = Upgrade.objects.filter(pk=self.upgrade.pk, fence=self.held.fence).first()
        if row is None or row.state != self.upgrade.state:
            raise Lost
        if (who := row.request.back) and row.state in CHANGING:
            self.upgrade.asked = row.asked
            raise RollbackRequested(f"Rollback requested by {who}.")

    def log(self, text: str) -> None:
        """Write a line for people. A full disk costs the line, but never the rollback."""
        with suppress(OSError), (self.folder / "log").open("a") as file:
            file.write(f"{timezone.now():%H:%M:%S} {inspect.without_secrets(self.app, text)}\n")

    def report(self, text: str) -> None:
        self.log(text)
        note(self.upgrade, "step", inspect.without_secrets(self.app, text))

    def _move(self, event: str, text: str, **fields: Any) -> None:
        if not move(self.upgrade, event, text, fence=self.held.fence, **fields):
            raise Lost
        self.log(f"{self.upgrade.state}: {text}")

    def _guard(self, name: str, **fields: Any) -> None:
        """Announce the next action, if the app is still ours to change. Raises Lost, and what `check` raises."""
        self._announce(name, int(self.upgrade.step.get("tries", 0)), **fields)
        self._looked = 0.0
        self.check()

    def _announce(self, name: str, tries: int, **fields: Any) -> None:
        step = {"name": name, "at": timezone.now().isoformat(), "tries": tries}
        if not announce(self.upgrade, self.held.fence, step, **fields):
            raise Lost

    def _remember(self, **facts: Any) -> None:
        """Store what is needed later. Raises Lost."""
        if not remember(self.upgrade, self.held.fence, **facts):
            raise Lost

    def _deployer(self, which: str, seconds: int = inspect.SETTLE_SECONDS) -> PersistentDeployer:
        """The app's deployer with the old or the new version's recipe."""
        files = inspect.checkout(self.app, self.upgrade.found.commits[which], self.folder / which)
        one = inspect.deployer_for(
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

    def _inspect(self, deployer: PersistentDeployer, *, missing: bool = False) -> dict[str, ServiceState]:
        """The services now; with `missing`, they may be stopped. Raises UnexpectedChanges if one was changed outside cc-ci.

        What cc-ci deployed is known by its fingerprint, or by its mark until that is recorded.
        """
        parts = deployer.parts()
        self._only_ours(parts, missing=missing)
        return parts

    def _only_ours(self, parts: Mapping[str, ServiceState], *, missing: bool = False) -> None:
        """Raises UnexpectedChanges, as `_look` does, for these services."""
        deployed, announced = self.upgrade.found.deployed, self.upgrade.found.announced
        before = {name: part.fingerprint for name, part in self._before().items()}
        known: dict[str, set[str]] = {}
        for one in (before, *deployed.values()):
            for name, fingerprint in one.items():
                known.setdefault(name, set()).add(fingerprint)
        marks = {mark for mark in announced if mark not in deployed}
        last = next((deployed[mark] for mark in reversed(announced) if mark in deployed), before)
        if changes := drift.unexpected(parts, Allowed(known, () if missing else tuple(last), marks)):
            raise UnexpectedChanges(changes)

    def _put(self, deployer: PersistentDeployer, which: str, version: str) -> None:
        """Deploy a version: announced before, and known by its fingerprints as soon as it is deployed.

        What ran before is restored as recorded, spec by spec: the version's files may say less than what ran.
        """
        mark = self._mark(which)
        announced = [one for one in self.upgrade.found.announced if one != mark]
        facts = with_facts(self.upgrade, announced=[*announced, mark])
        self._guard("deploy", facts=facts, ran_new=self.upgrade.ran_new or which == "new")
        self.report(f"Deploying {version}")
        if recorded := self._recorded() if which == "old" else self._ran_once():
            deployer.restore_specs(self.folder / which, recorded)
        else:
            deployer.deploy(self.folder / which)
        parts = {name: part.fingerprint for name, part in deployer.parts().items()}
        self._remember(deployed={**self.upgrade.found.deployed, mark: parts})
        deployer.settle()

    def _docker_restarted(self) -> bool:
        """Whether Docker restarted since the upgrade started, or since it was last checked."""
        before, now = self.upgrade.found.docker_began, self._docker_began()
        return bool(before and now and before != now)

    def _docker_began(self) -> str:
        """When Docker was started; empty if unknown."""
        with suppress(DeployError):
            return next((deployer.docker_began() for deployer in self._open[-1:]), "")
        return ""

    def _before(self) -> dict[str, ServiceState]:
        return inspect.known_parts(self.upgrade.baseline.get("parts", {}))

    def _recorded(self) -> StackBaseline:
        return recorded_by(self.upgrade)

    def _ran_once(self) -> StackBaseline | None:
        """How the version to deploy ran before, if a person wants that restored."""
        request = self.upgrade.request
        if request.kind == "restore-ours":
            return inspect.left(self.app)
        before = Upgrade.objects.filter(pk=request.as_before or 0).first()
        return recorded_by(before) if before and before.specs else None

    @property
    def stateful(self) -> bool:
        return snapshot.is_stateful(self.app)

    def _copier(self, deployer: PersistentDeployer) -> Volumes:
        return deployer.copier(self._copy_images())

    def _copy_images(self) -> Sequence[str]:
        """Images on this host that can be used to copy volumes."""
        return [*self._recorded().images.values(), *self._recorded().names.values()]

    def _pause(self, length: float) -> None:
        until = time.monotonic() + length
        while (left := until - time.monotonic()) > 0:
            self.check()
            self.sleep(min(left, 0.5))


def recorded_by(upgrade: Upgrade) -> StackBaseline:
    """What ran before an upgrade, as recorded."""
    digests = upgrade.digests
    return StackBaseline(
        upgrade.specs,
        {name: image["id"] for name, image in digests.items() if image["id"]},
        {name: image["name"] for name, image in digests.items()},
        [Volume(**volume) for volume in upgrade.found.volumes],
        upgrade.found.networks,
    )


def differences(parts: Mapping[str, ServiceState], before: Mapping[str, ServiceState]) -> list[str]:
    """Services whose specs differ from before. (Missing ones are reported elsewhere.)"""
    found = [f"{name} is new" for name in sorted(set(parts) - set(before))]
    changed = [name for name, part in sorted(parts.items()) if name in before and part.fingerprint != before[name].fingerprint]
    return found + [f"the spec of {name} differs from the recorded one" for name in changed]
