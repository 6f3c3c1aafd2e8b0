"""What only the machine can tell of an app before an upgrade: the gate's `Live`."""

from __future__ import annotations

from os import cpu_count, getloadavg

from infra import health, ownership, running, snapshots
from infra.deployers.base import DeployError
from infra.deployers.engine import inspect
from infra.looking import Live
from infra.models import InfraApp, InfraRelease
from infra.running import NotReachable

#: So many processes that want to run, for each processor, are too many for an upgrade to be judged fairly.
MOST_LOAD = 2.0


def live(app: InfraApp) -> Live:
    """Look at an app and its machine. Changes nothing; what cannot be seen is told as sickness."""
    if not app.ours:
        return Live()
    try:
        return _look(app)
    except (DeployError, NotReachable, OSError) as error:
        return Live(sick=f"it cannot be looked at: {error}")


def _look(app: InfraApp) -> Live:
    seen = running.see(app)
    changes = ownership.foreign(seen.parts, ownership.settled(app)) if app.fingerprint else []
    missing = [part.image for part in seen.parts.values() if not inspect("image", [part.image])]
    return Live(
        contested=" ".join(changes),
        sick="; ".join(_sick(app, seen)),
        busy=busy(),
        disk=snapshots.no_room(app),
        old_image=f"{', '.join(missing)} is not on this machine." if missing else "",
    )


def _sick(app: InfraApp, seen: running.Seen) -> list[str]:
    problems = health.ill(seen.parts)
    release = InfraRelease.objects.filter(app=app, version=seen.version).first()
    if problems or release is None:
        return problems
    work = running.work_of(app)
    files = running.checkout(app, release.commit, work / f"at-{release.commit[:12]}")
    deployer = running.deployer_for(app, files, work)
    try:
        deployer.know(files)
        samples = health.ask(deployer, running.checks_of(app), app.domain)
    finally:
        deployer.close()
    return [f"{sample.name}: {sample.said}" for sample in samples if not sample.ok]


def busy() -> str:
    """Why the machine has no time for an upgrade now; empty when it has."""
    load, processors = getloadavg()[1], cpu_count() or 1
    if load <= MOST_LOAD * processors:
        return ""
    return f"its load is {load:.1f} on {processors} processors."
