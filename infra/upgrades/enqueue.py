"""What a person may request by command or button: an upgrade, a rollback, a snapshot, its data, or what cc-ci had deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from django.conf import settings
from django.db import transaction

from infra.deployers.errors import DeployError
from infra.lifecycle import move, move_app, move_release, request_rollback
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.releases import discovery, evaluate
from infra.releases.evaluate import command, readable
from infra.releases.gate import Plan
from infra.runtime import inspect
from infra.runtime.drift import Refused
from infra.runtime.inspect import NotReachable
from infra.snapshots.snapshot import is_stateful
from infra.states import CHANGING, WAITING, WORKING
from infra.upgrade_records import Request
from infra.upgrades import launcher
from infra.upgrades.preflight import preflight

_PLAIN = Request()


def plan_of(app: InfraApp, *, now: bool = False) -> Plan:
    """The gate's plan after a fresh preflight; `now`: ignore the window and the host's load."""
    plan = evaluate.plan_of(app, preflight(app), any_time=now)
    evaluate.record(app, plan)
    return plan


def upgrade(app: InfraApp, version: str, who: str, *, now: bool = False) -> Upgrade:
    """Start an upgrade to `version`, or to the highest that passes the gate. Raises Refused with every reason."""
    try:
        discovery.discover(app)
    except discovery.NotDiscovered as error:
        raise Refused(str(error)) from error
    app.refresh_from_db()
    plan = plan_of(app, now=now)
    reasons = [f"{blocker.text} {blocker.remedy}" for blocker in plan.blockers]
    target = plan.target
    if version:
        wanted = readable(version)
        verdict = plan.verdict(wanted) if wanted else None
        if verdict is None and not reasons:
            raise Refused(f"There is no release {version} newer than {app.running_version}. See: {command('releases', app.name)}")
        target = wanted
        reasons += [f"{blocker.text} {blocker.remedy}" for blocker in verdict.blockers] if verdict else []
    elif target is None and not reasons:
        held = [f"{b.text} {b.remedy}" for verdict in plan.verdicts for b in verdict.blockers]
        raise Refused(" ".join(held) or f"{app.name} runs {app.running_version}, which is the newest release.")
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
    request: Request = _PLAIN,
) -> Upgrade:
    """Record an upgrade, and start the process that executes it. Raises Refused while another one is running.

    `from_version`: what runs, if not what was last seen. `start`: another way to execute it.
    """
    with transaction.atomic():
        InfraApp.objects.select_for_update().get(pk=app.pk)
        if at_work := app.under_way():
            raise Refused(f"An upgrade is already running: {at_work}, {at_work.get_state_display()}. Wait for it to finish.")
        for old in app.upgrades.filter(state__in=WAITING):
            move(old, "fail", "Superseded by another upgrade.")
        row = Upgrade.objects.create(
            app=app,
            from_version=app.running_version if from_version is None else from_version,
            to_version=version,
            trigger=trigger[:300],
            asked=replace(request, host=settings.CC_CI.host).as_json(),
        )
        move(row, "approve", trigger)
    (start or launcher.start)(row)
    return row


def roll_back(app: InfraApp, who: str, *, data: bool = False) -> Upgrade:
    """Go back to the version before: reverse a running upgrade, or undo a finished one by another upgrade.

    `data`: also restore the snapshot that was taken then; what was written since is lost (but kept in a newer snapshot).
    Raises Refused.
    """
    at_work = app.upgrades.filter(state__in=WORKING).first()
    if at_work:
        if at_work.state not in CHANGING:
            raise Refused(f"An upgrade is already running: {at_work}, {at_work.get_state_display()}. Wait for it to finish.")
        request_rollback(at_work, who)
        return at_work
    _is_ours(app)
    last = app.last_success()
    if last is None:
        raise Refused(
            f"cc-ci did not upgrade {app.name} to {app.running_version or 'what runs'}, so it does not know the version before."
        )
    if data and last.snapshot is None:
        raise Refused(f"There is no snapshot of {last.from_version}. See: {command('snapshots', app.name)}")
    request = Request(kind="rollback", sick=True, as_before=last.pk, data=last.snapshot_id if data else None)
    return begin(app, last.from_version, f"{who}, by rollback", request=request)


def snapshot(app: InfraApp, who: str) -> Upgrade:
    """Take a snapshot now: the app is stopped for it, and started again. Raises Refused."""
    _is_ours(app)
    if not is_stateful(app):
        raise Refused(f"{app.name} has `snapshots: none` in infra.yml.")
    if not app.running_version:
        raise Refused(f"{app.name} is not running, as far as cc-ci knows. To deploy it: {command('deploy', app.name)}")
    return begin(app, app.running_version, f"{who}, by snapshot", request=Request(kind="snapshot", soak=0))


def restore(app: InfraApp, snapshot: Snapshot, who: str) -> Upgrade:
    """Restore a snapshot's data, with the version it was taken of. Raises Refused."""
    _is_ours(app)
    return begin(app, snapshot.version, f"{who}, by restore", request=Request(kind="restore", data=snapshot.pk, sick=True))


def restore_ours(app: InfraApp, who: str) -> Upgrade:
    """Restore what cc-ci had deployed, if what runs is still the drift that was found.

    Raises Refused.
    """
    if app.state != InfraApp.State.DRIFTED:
        raise Refused(f"{app.name} has not drifted: what runs is what cc-ci deployed.")
    try:
        seen = inspect.see(app)
    except (NotReachable, DeployError) as error:
        raise Refused(f"Cannot inspect what runs: {error}") from error
    if seen.fingerprint != app.contested.get("fingerprint"):
        move_app(app, "drift", contested={**app.contested, "fingerprint": seen.fingerprint, "theirs": seen.version})
        raise Refused(f"It has changed again: {seen.version or 'nothing'} runs now. Check it, then repeat the command.")
    if not seen.parts:
        raise Refused(f"It is no longer running. Deploy it from its snapshot: cc-ci infra deploy {app.name}")
    request = Request(kind="restore-ours", accept=seen.fingerprint, sick=True)
    return begin(app, app.running_version, f"{who}, by restore-ours", from_version=seen.version or None, request=request)


def _is_ours(app: InfraApp) -> None:
    if not app.ours:
        raise Refused(
            f"{app.name} is managed by its maintainers; cc-ci changes nothing. They run: abra app rollback {app.domain}"
        )
    if app.state == InfraApp.State.DRIFTED:
        raise Refused(f"{app.name} has drifted. First choose: {command('adopt', app.name)}, restore-ours or hand-over.")


def release_from_quarantine(app: InfraApp, version: str, who: str) -> InfraRelease:
    """Release a version from quarantine, so that it may be tried again. Raises Refused."""
    row = app.release(version)
    if row is None or row.state != InfraRelease.State.QUARANTINED:
        raise Refused(f"{app.name} {version} is not quarantined.")
    evidence = {key: value for key, value in row.evidence.items() if key != "quarantined"} | {"lifted_by": who}
    if not move_release(row, "release", evidence=evidence):
        raise Refused(f"{app.name} {version} was modified concurrently; try again.")
    evaluate.record(app, evaluate.plan_of(app))
    row.refresh_from_db()
    return row
