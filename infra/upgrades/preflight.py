"""What only the host can tell before an upgrade of an app: the gate's `Preflight`."""

from __future__ import annotations

from os import cpu_count, getloadavg

from infra.deployers.docker.api import inspect
from infra.deployers.errors import DeployError
from infra.models import InfraApp
from infra.releases.gate import Preflight
from infra.runtime import drift, health
from infra.runtime import inspect as running
from infra.runtime.inspect import NotReachable
from infra.snapshots import snapshot

#: Load per processor above which an upgrade cannot be judged fairly.
MOST_LOAD = 2.0


def preflight(app: InfraApp) -> Preflight:
    """Inspect an app and its host. Changes nothing; what cannot be inspected is reported as unhealthy."""
    if not app.ours:
        return Preflight()
    try:
        return _inspect(app)
    except (DeployError, NotReachable, OSError) as error:
        return Preflight(unhealthy=f"it cannot be inspected: {error}")


def _inspect(app: InfraApp) -> Preflight:
    seen = running.see(app)
    changes = drift.unexpected(seen.parts, drift.settled(app)) if app.fingerprint else []
    missing = [part.image for part in seen.parts.values() if not inspect("image", [part.image])]
    return Preflight(
        drift=" ".join(changes),
        unhealthy="; ".join(_unhealthy(app, seen)),
        busy=busy(),
        disk=snapshot.no_room(app),
        old_image=f"{', '.join(missing)} is missing on this host." if missing else "",
    )


def _unhealthy(app: InfraApp, seen: running.Seen) -> list[str]:
    problems = health.unhealthy(seen.parts)
    release = app.release(seen.version)
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
    """Why the host is too busy for an upgrade; empty if it is not."""
    load, processors = getloadavg()[1], cpu_count() or 1
    if load <= MOST_LOAD * processors:
        return ""
    return f"the load is {load:.1f} on {processors} processors."
