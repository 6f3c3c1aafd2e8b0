"""Whose an app is while it runs: what cc-ci left there is known by fingerprints, and anything else makes it *contested*.

Then all action stops until a person chooses: `adopt` (what runs is ours now), `restore_ours`, or `hand_over`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from infra import alerts, pins, running
from infra.deployers.base import DeployError
from infra.deployers.lasting import Part
from infra.editing import PinError
from infra.looking import MENDED, command, readable
from infra.models import InfraApp, InfraFile, Upgrade
from infra.running import NotReachable, Seen
from infra.schema import Git
from infra.states import WORKING, UpgradeState


class Refused(Exception):
    """This cannot be done now; the message says why and what to do."""


@dataclass(frozen=True)
class Allowed:
    """What may run at a moment and be our own doing.

    `required`: the services that have to be there; others may be stopped. `marks`: deployments that were announced, and whose
    specs are not known yet.
    """

    fingerprints: Mapping[str, Collection[str]]
    required: Collection[str] = field(default_factory=frozenset)
    marks: Collection[str] = field(default_factory=frozenset)


def foreign(seen: Mapping[str, Part], allowed: Allowed) -> list[str]:
    """What somebody else did, a sentence each; empty: all of it is ours. Pure."""
    found = [f"The service {name} is gone." for name in sorted(set(allowed.required) - set(seen))]
    for name, part in sorted(seen.items()):
        if part.mark and part.mark in allowed.marks:
            continue
        known = allowed.fingerprints.get(name)
        if known is None:
            found.append(f"The service {name} is new: {part.image}.")
        elif part.fingerprint not in known:
            found.append(f"The service {name} was changed; it runs {part.image}{f' as {part.version}' if part.version else ''}.")
    return found


def settled(app: InfraApp) -> Allowed:
    """What may run of an app that nobody works on: just what was recorded."""
    return Allowed({name: {str(part["fingerprint"])} for name, part in app.parts.items()}, frozenset(app.parts))


def look_after(app: InfraApp) -> str:
    """One tick: look at what runs, and write down what is new, or that the app is contested. Gives a word.

    Changes nothing on the machine. Raises NotReachable and DeployError.
    """
    if app.state != InfraApp.State.SETTLED:
        return app.state
    seen = running.see(app)
    if not app.ours or not app.fingerprint:  # others' apps may change; what was never seen is taken as it is
        if (app.fingerprint, app.running_version) != (seen.fingerprint, seen.version):
            _rows(app).update(**running.see(app, full=app.ours).columns())
        return "looked at"
    changes = foreign(seen.parts, settled(app))
    if not changes:
        return "as it was"
    return "contested" if contest(app, seen, changes) else "changed meanwhile"


def _rows(app: InfraApp) -> Any:
    """The app's row, if it is still as it was read: whoever took it up meanwhile has changed the number."""
    return InfraApp.objects.filter(
        pk=app.pk, fence=app.fence, owner=app.owner, state=InfraApp.State.SETTLED, fingerprint=app.fingerprint
    )


def contest(app: InfraApp, seen: Seen, changes: list[str], *, rows: Any = None) -> bool:
    """Stop all action on the app, and tell people. False when somebody else works on it."""
    found = {
        "at": timezone.now().isoformat(),
        "changes": changes,
        "ours": app.running_version,
        "theirs": seen.version,
        "fingerprint": seen.fingerprint,
    }
    moved = (_rows(app) if rows is None else rows).update(state=InfraApp.State.CONTESTED, contested=found, fence=F("fence") + 1)
    if moved:
        app.refresh_from_db()
        alerts.tell("contested", app, contested_words(app), key=f"{app.pk}:{seen.fingerprint}")
    return bool(moved)


def contested_words(app: InfraApp) -> str:
    """What happened, with both versions, and the three ways on."""
    found = app.contested
    changes = " ".join(found.get("changes", []))
    return (
        f"{app.name} was changed without cc-ci. {changes} cc-ci left {found.get('ours') or 'nothing'} there, "
        f"now {found.get('theirs') or 'nothing with a version'} runs. Nothing is touched until a person chooses: "
        f"{command('adopt', app.name)} (what runs is cc-ci's now), {command('restore-ours', app.name)}, "
        f"or {command('hand-over', app.name)} (to its maintainers)."
    )


def _at_rest(app: InfraApp, what: str) -> None:
    at_work = app.upgrades.filter(state__in=WORKING).first()
    if at_work or app.state == InfraApp.State.UPGRADING:
        state = f" ({at_work}, {at_work.get_state_display()})" if at_work else ""
        raise Refused(f"An upgrade of {app.name} is under way{state}: {what} when it has ended.")


def adopt(app: InfraApp, who: str) -> list[str]:
    """What runs is cc-ci's from now on, whoever put it there; an app of its maintainers' becomes cc-ci's. Gives what to know.

    Raises Refused.
    """
    _at_rest(app, "adopt it")
    try:
        seen = running.see(app, full=True)
    except (NotReachable, DeployError) as error:
        raise Refused(f"What runs cannot be looked at: {error}") from error
    if not seen.parts:
        raise Refused(f"Nothing runs as the stack {app.stack}, so there is nothing to adopt.")
    if not readable(seen.version):
        raise Refused(
            f"What runs calls itself {seen.version or 'nothing'}, which is no version of a recipe. "
            f"Deploy a tagged version by hand, or: {command('restore-ours', app.name)}"
        )
    told = []
    if app.owner != InfraApp.Owner.RECONCILED:
        # In this order: an app that cc-ci reconciles needs a version.
        told += [*_write(app, "version", seen.version), *_write(app, "owner", "reconciled", must=True)]
    else:
        told += _write(app, "version", seen.version)
    with transaction.atomic():
        moved = InfraApp.objects.filter(pk=app.pk, fence=app.fence, state=app.state).update(
            **seen.columns(),
            owner=InfraApp.Owner.RECONCILED,
            state=InfraApp.State.SETTLED,
            pinned_version=seen.version,
            contested={},
            fence=F("fence") + 1,
        )
        if not moved:
            raise Refused(f"{app.name} is being changed in this moment; try again.")
        _mend(app, who)
    app.refresh_from_db()
    return told


def _mend(app: InfraApp, who: str) -> None:
    """A person has looked at what a failed rollback left."""
    for upgrade in app.upgrades.filter(state=UpgradeState.ROLLBACK_FAILED):
        if not upgrade.step.get(MENDED):
            Upgrade.objects.filter(pk=upgrade.pk).update(step={**upgrade.step, MENDED: who})


def hand_over(app: InfraApp, who: str) -> list[str]:
    """To its maintainers: cc-ci changes nothing from now on. Refused in mid-step. Gives what to know. Raises Refused."""
    if app.owner == InfraApp.Owner.MAINTAINERS:
        raise Refused(f"{app.name} is its maintainers' already.")
    _at_rest(app, "hand it over")
    with transaction.atomic():
        moved = (
            InfraApp.objects.filter(pk=app.pk, fence=app.fence, owner=InfraApp.Owner.RECONCILED)
            .exclude(state=InfraApp.State.UPGRADING)
            .update(owner=InfraApp.Owner.MAINTAINERS, state=InfraApp.State.SETTLED, contested={}, fence=F("fence") + 1)
        )
        if not moved:
            raise Refused(f"An upgrade of {app.name} has just begun: hand it over when it has ended.")
        waiting = app.upgrades.filter(state__in=[UpgradeState.PLANNED, UpgradeState.HELD, UpgradeState.APPROVED])
        from infra.upgrades_states import move

        for upgrade in waiting:
            move(upgrade, "fail", f"{who} handed {app.name} over to its maintainers.", reason="Handed over to its maintainers.")
        _mend(app, who)
    app.refresh_from_db()
    return _write(app, "owner", "maintainers")


def _write(app: InfraApp, key: Any, value: str, *, must: bool = False) -> list[str]:
    """Write it into infra.yml, where there is one. Gives what went wrong; raises Refused for it when it `must` be written."""
    file = InfraFile.objects.first()
    if file is None:
        return []
    try:
        pinned = pins.write_value(Path(file.path), app.name, key, value, Git.model_validate(file.git))
    except PinError as error:
        if must:
            raise Refused(f"{error} Nothing was changed.") from error
        return [str(error)]
    return [pinned.problem] if pinned.problem else []


def write_pin(app: InfraApp, version: str) -> list[str]:
    """The new version into infra.yml. Gives what went wrong, which fails nothing."""
    return _write(app, "version", version)
