"""What a person may ask for, by a command or a button: an upgrade, the way back, a snapshot's data, what cc-ci had left there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F

from infra import carrying, looking, releases, running
from infra.deployers.base import DeployError
from infra.gate import Plan
from infra.living import live
from infra.looking import command, readable
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.ownership import Refused
from infra.running import NotReachable
from infra.snapshots import is_stateful
from infra.states import CHANGING, WAITING, WORKING, UpgradeState
from infra.upgrades_states import move, note


def plan_of(app: InfraApp, *, now: bool = False) -> Plan:
    """What the gate says with a fresh look at the machine; `now`: neither the window nor a busy machine counts."""
    plan = looking.look(app, live(app), any_time=now)
    looking.record(app, plan)
    return plan


def upgrade(app: InfraApp, version: str, who: str, *, now: bool = False) -> Upgrade:
    """Begin an upgrade to `version`, or to the highest that passes the gate. Raises Refused with every reason."""
    try:
        releases.discover(app)
    except releases.NotDiscovered as error:
        raise Refused(str(error)) from error
    app.refresh_from_db()
    plan = plan_of(app, now=now)
    reasons = [f"{blocker.text} {blocker.lift}" for blocker in plan.blockers]
    target = plan.target
    if version:
        wanted = readable(version)
        verdict = plan.verdict(wanted) if wanted else None
        if verdict is None and not reasons:
            raise Refused(f"There is no release {version} above {app.running_version}. See: {command('releases', app.name)}")
        target = wanted
        reasons += [f"{blocker.text} {blocker.lift}" for blocker in verdict.blockers] if verdict else []
    elif target is None and not reasons:
        held = [f"{b.text} {b.lift}" for verdict in plan.verdicts for b in verdict.blockers]
        raise Refused(" ".join(held) or f"{app.name} runs {app.running_version}, and there is nothing newer.")
    if reasons:
        raise Refused(f"{app.name} stays at {app.running_version or 'what runs'}. {' '.join(reasons)}")
    return begin(app, str(target), who)


def begin(
    app: InfraApp,
    version: str,
    trigger: str,
    *,
    from_version: str | None = None,
    start: Callable[[Upgrade], object] | None = None,
    **asked: Any,
) -> Upgrade:
    """Write an upgrade down and start the process that carries it out. Raises Refused while another one is there.

    `from_version`: what runs, unless it is what was seen last. `start`: another way to carry it out.
    """
    with transaction.atomic():
        InfraApp.objects.select_for_update().get(pk=app.pk)
        at_work = app.upgrades.filter(state__in=[*WORKING, UpgradeState.APPROVED]).first()
        if at_work:
            raise Refused(f"{at_work} is {at_work.get_state_display()} already.")
        for old in app.upgrades.filter(state__in=WAITING):
            move(old, "fail", "Another one came in its place.")
        row = Upgrade.objects.create(
            app=app,
            from_version=app.running_version if from_version is None else from_version,
            to_version=version,
            trigger=trigger[:300],
            asked={**asked, "host": settings.CC_CI.host},
        )
        move(row, "approve", trigger)
    (start or carrying.start)(row)
    return row


def roll_back(app: InfraApp, who: str, *, data: bool = False) -> Upgrade:
    """Back to the version before: an upgrade that is under way turns round; one that has ended is undone by another upgrade.

    `data`: with the data of the snapshot that was taken then; what was written since is lost (and kept in a newer snapshot).
    Raises Refused.
    """
    at_work = app.upgrades.filter(state__in=WORKING).first()
    if at_work:
        if at_work.state not in CHANGING:
            raise Refused(f"{at_work} is {at_work.get_state_display()} already.")
        Upgrade.objects.filter(pk=at_work.pk, state__in=CHANGING).update(asked={**at_work.asked, "back": who})
        note(at_work, "asked", f"{who} wants {at_work.from_version} back.")
        return at_work
    _is_ours(app)
    done = app.upgrades.filter(state=UpgradeState.SUCCEEDED, to_version=app.running_version)
    last = done.exclude(from_version=F("to_version")).first()
    if last is None or not last.from_version:
        raise Refused(f"cc-ci did not bring {app.name} to {app.running_version or 'what runs'}, so it knows no version before.")
    asked: dict[str, Any] = {"kind": "rollback", "sick": True, "as_before": last.pk}
    if data:
        if last.snapshot is None:
            raise Refused(f"There is no snapshot of {last.from_version}. See: {command('snapshots', app.name)}")
        asked["data"] = last.snapshot.pk
    return begin(app, last.from_version, f"{who}, by rollback", **asked)


def snapshot(app: InfraApp, who: str) -> Upgrade:
    """Take a snapshot now: the app is stopped for it, and comes back as it was. Raises Refused."""
    _is_ours(app)
    if not is_stateful(app):
        raise Refused(f"infra.yml says `snapshots: none` for {app.name}.")
    if not app.running_version:
        raise Refused(f"{app.name} does not run, as far as is known. To bring it up: {command('deploy', app.name)}")
    return begin(app, app.running_version, f"{who}, by snapshot", kind="snapshot", soak=0)


def restore(app: InfraApp, snapshot: Snapshot, who: str) -> Upgrade:
    """The data of a snapshot, with the version that it was taken of. Raises Refused."""
    _is_ours(app)
    return begin(app, snapshot.version, f"{who}, by restore", kind="restore", data=snapshot.pk, sick=True)


def restore_ours(app: InfraApp, who: str) -> Upgrade:
    """What cc-ci had left there, in the place of what somebody else made of it: only if that is still what was found.

    Raises Refused.
    """
    if app.state != InfraApp.State.CONTESTED:
        raise Refused(f"{app.name} is not contested: what runs is what cc-ci left there.")
    try:
        seen = running.see(app)
    except (NotReachable, DeployError) as error:
        raise Refused(f"What runs cannot be looked at: {error}") from error
    if seen.fingerprint != app.contested.get("fingerprint"):
        InfraApp.objects.filter(pk=app.pk, state=InfraApp.State.CONTESTED).update(
            contested={**app.contested, "fingerprint": seen.fingerprint, "theirs": seen.version}
        )
        raise Refused(f"It was changed again since: {seen.version or 'nothing'} runs now. Look at it, then say it again.")
    if not seen.parts:
        raise Refused(f"Nothing of it runs any more. Bring it back from its snapshot: cc-ci infra deploy {app.name}")
    ours = app.running_version
    row = begin(app, ours, f"{who}, by restore-ours", kind="restore-ours", accept=seen.fingerprint, sick=True)
    if seen.version and seen.version != ours:
        Upgrade.objects.filter(pk=row.pk, state=UpgradeState.APPROVED).update(from_version=seen.version)
    return row


def _is_ours(app: InfraApp) -> None:
    if not app.ours:
        raise Refused(f"{app.name} is its maintainers', and cc-ci changes nothing. They type: abra app rollback {app.domain}")
    if app.state == InfraApp.State.CONTESTED:
        raise Refused(f"{app.name} is contested. {command('adopt', app.name)}, restore-ours or hand-over comes first.")


def lift(app: InfraApp, version: str, who: str) -> InfraRelease:
    """Take a version out of quarantine: a person says that it may be tried again. Raises Refused."""
    row = app.releases.filter(version=version).first()
    if row is None or row.state != InfraRelease.State.QUARANTINED:
        raise Refused(f"{app.name} {version} is not quarantined.")
    evidence = {key: value for key, value in row.evidence.items() if key != "quarantined"} | {"lifted_by": who}
    rows = InfraRelease.objects.filter(pk=row.pk, state=InfraRelease.State.QUARANTINED)
    if not rows.update(state=InfraRelease.State.CANDIDATE, evidence=evidence):
        raise Refused(f"{app.name} {version} is being changed in this moment; try again.")
    row.refresh_from_db()
    looking.record(app, looking.look(app))
    row.refresh_from_db()
    return row
