"""Drift: cc-ci knows what it deployed by fingerprints; anything else was changed outside cc-ci.

All action on a drifted app stops until a person chooses: `adopt` (keep what runs), `restore_ours`, or `hand_over`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from infra import alerts, lifecycle
from infra.config import commit
from infra.config.edit import PinError
from infra.config.schema import Git
from infra.deployers.errors import DeployError
from infra.deployers.swarm.persistent import ServiceState
from infra.models import InfraApp, InfraFile
from infra.releases.evaluate import command, readable
from infra.runtime import inspect
from infra.runtime.inspect import NotReachable, Seen
from infra.states import WAITING, WORKING


class Refused(Exception):
    """This cannot be done now; the message says why and what to do."""


@dataclass(frozen=True)
class Allowed:
    """What cc-ci itself may have running at a given time.

    `required`: services that must exist; others may be stopped. `marks`: announced deployments whose specs are not known yet.
    """

    fingerprints: Mapping[str, Collection[str]]
    required: Collection[str] = field(default_factory=frozenset)
    marks: Collection[str] = field(default_factory=frozenset)


def unexpected(seen: Mapping[str, ServiceState], allowed: Allowed) -> list[str]:
    """Changes made outside cc-ci, one sentence each; empty if there are none. Pure."""
    found = [f"Service {name} is gone." for name in sorted(set(allowed.required) - set(seen))]
    for name, part in sorted(seen.items()):
        if part.mark and part.mark in allowed.marks:
            continue
        known = allowed.fingerprints.get(name)
        if known is None:
            found.append(f"Service {name} is new: {part.image}.")
        elif part.fingerprint not in known:
            found.append(f"Service {name} was changed; it runs {part.image}{f' as {part.version}' if part.version else ''}.")
    return found


def settled(app: InfraApp) -> Allowed:
    """What may run of an app that is not being upgraded: exactly what was recorded."""
    return Allowed({name: {str(part["fingerprint"])} for name, part in app.parts.items()}, frozenset(app.parts))


def check(app: InfraApp) -> str:
    """Inspect what runs, and record what is new or that the app has drifted. Returns the outcome.

    Changes nothing on the host. Raises NotReachable and DeployError.
    """
    if app.state != InfraApp.State.SETTLED:
        return app.state
    seen = inspect.see(app)
    if not app.ours or not app.fingerprint:  # others may change their apps; the first sight of an app is taken as it is
        if (app.fingerprint, app.running_version) != (seen.fingerprint, seen.version):
            lifecycle.observe(app, inspect.see(app, full=app.ours).columns())
        return "looked at"
    changes = unexpected(seen.parts, settled(app))
    if not changes:
        return "as it was"
    return "contested" if record(app, seen, changes) else "changed meanwhile"


def record(app: InfraApp, seen: Seen, changes: list[str]) -> bool:
    """Stop all action on the app, and alert people. False if it was modified concurrently."""
    found = {
        "at": timezone.now().isoformat(),
        "changes": changes,
        "ours": app.running_version,
        "theirs": seen.version,
        "fingerprint": seen.fingerprint,
    }
    moved = lifecycle.move_app(app, "drift", contested=found)
    if moved:
        alerts.tell("contested", app, drift_message(app), key=f"{app.pk}:{seen.fingerprint}")
    return moved


def drift_message(app: InfraApp) -> str:
    """What happened, with both versions, and the three choices."""
    found = app.contested
    changes = " ".join(found.get("changes", []))
    return (
        f"{app.name} was changed outside cc-ci. {changes} cc-ci had deployed {found.get('ours') or 'nothing'}; now "
        f"{found.get('theirs') or 'an unknown version'} runs. cc-ci changes nothing until you choose: "
        f"{command('adopt', app.name)} (keep what runs now), {command('restore-ours', app.name)} (restore what cc-ci "
        f"had deployed), or {command('hand-over', app.name)} (leave it to its maintainers)."
    )


def _at_rest(app: InfraApp, what: str) -> None:
    at_work = app.upgrades.filter(state__in=WORKING).first()
    if at_work or app.state == InfraApp.State.UPGRADING:
        state = f" ({at_work}, {at_work.get_state_display()})" if at_work else ""
        raise Refused(f"An upgrade of {app.name} is running{state}: {what} when it has finished.")


def adopt(app: InfraApp, who: str) -> list[str]:
    """Let cc-ci manage what runs now, whoever deployed it. Returns warnings.

    Raises Refused.
    """
    _at_rest(app, "adopt it")
    try:
        seen = inspect.see(app, full=True)
    except (NotReachable, DeployError) as error:
        raise Refused(f"Cannot inspect what runs: {error}") from error
    if not seen.parts:
        raise Refused(f"Nothing runs as the stack {app.stack}, so there is nothing to adopt.")
    if not readable(seen.version):
        raise Refused(
            f"The version label of what runs is not a recipe version ({seen.version or 'none'}). Deploy a tagged "
            f"version, or: {command('restore-ours', app.name)}"
        )
    told = []
    if app.owner != InfraApp.Owner.RECONCILED:
        # In this order: an app that cc-ci reconciles needs a version.
        told += [*_write(app, "version", seen.version), *_write(app, "owner", "reconciled", must=True)]
    else:
        told += _write(app, "version", seen.version)
    with transaction.atomic():
        if not lifecycle.move_app(
            app, "adopt", **seen.columns(), owner=InfraApp.Owner.RECONCILED, pinned_version=seen.version, contested={}
        ):
            raise Refused(f"{app.name} was modified concurrently; try again.")
        lifecycle.record_repair(app, who)
    return told


def hand_over(app: InfraApp, who: str) -> list[str]:
    """Leave the app to its maintainers; refused in the middle of a step. Returns warnings. Raises Refused."""
    if app.owner == InfraApp.Owner.MAINTAINERS:
        raise Refused(f"{app.name} is already managed by its maintainers.")
    _at_rest(app, "hand it over")
    with transaction.atomic():
        if not lifecycle.move_app(app, "hand_over", owner=InfraApp.Owner.MAINTAINERS, contested={}):
            raise Refused(f"{app.name} was modified concurrently; try again.")
        for upgrade in app.upgrades.filter(state__in=WAITING):
            lifecycle.move(
                upgrade, "fail", f"{who} handed {app.name} over to its maintainers.", reason="Handed over to its maintainers."
            )
        lifecycle.record_repair(app, who)
    return _write(app, "owner", "maintainers")


def _write(app: InfraApp, key: Any, value: str, *, must: bool = False) -> list[str]:
    """Write a value to infra.yml, if there is one. Returns warnings; raises Refused instead if it `must` be written."""
    file = InfraFile.objects.first()
    if file is None:
        return []
    try:
        pinned = commit.write_value(Path(file.path), app.name, key, value, Git.model_validate(file.git))
    except PinError as error:
        if must:
            raise Refused(f"{error} Nothing was changed.") from error
        return [str(error)]
    return [pinned.problem] if pinned.problem else []


def write_pin(app: InfraApp, version: str) -> list[str]:
    """Write the new version to infra.yml. Returns warnings; never fails."""
    return _write(app, "version", version)
