"""The server's own apps in every state, for the browser's tests and the screenshots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone

from infra.config import apply
from infra.config.load import dump
from infra.models import InfraApp, InfraFile, Snapshot, Upgrade, UpgradeEvent
from infra.runtime.inspect import folder_of
from infra.states import UpgradeState as S
from tests.browser.examples import HOSTILE
from tests.factories import InfraAppFactory, InfraReleaseFactory, SnapshotFactory, UpgradeFactory

NOTES = """\
Keycloak 26 changes its database.

Take a backup, and run the migration by hand before you upgrade:
the old version cannot read what the new one has written.
"""
LOG = """\
02:00:04 Fetching the images of 1.1.0+10.3
02:00:21 snapshotting: Recorded 2 services of 1.0.0+10.2, 1 volumes, 2 probes.
02:00:21 Stopping the app
02:00:27 Copying its volumes
02:00:41 deploying: Snapshot of 1 volume, 46.0 MB, verified after 13.9 s.
02:00:41 Deploying 1.1.0+10.3
"""


@dataclass
class OwnApps:
    settled: InfraApp
    held: InfraApp
    upgrading: InfraApp
    contested: InfraApp
    quarantined: InfraApp
    failed: InfraApp
    theirs: InfraApp
    running: Upgrade
    rolled_back: Upgrade
    lost: Upgrade


def own_apps() -> OwnApps:
    """One app for each state that an operator may find."""
    stores = {"disk": {"folder": "/srv/snapshots"}}
    applied = timezone.now() - timedelta(days=3)
    InfraFile.objects.create(path="/srv/infra/infra.yml", host="ci-1", stores=stores, applied_at=applied)
    stateful = {"snapshots": {"of": "volumes", "store": "disk", "keep": 3}, "discovered_at": timezone.now() - timedelta(hours=7)}
    held = InfraAppFactory(name="keycloak", domain="id.example.org", **stateful)
    InfraReleaseFactory(app=held, version="2.0.0+3.0", notes=NOTES, state="held")
    InfraReleaseFactory(app=held, version="1.0.1+2.0")
    SnapshotFactory(app=held, bytes=48_234_496)
    settled = InfraAppFactory(name="traefik", window="Mon-Fri 02:00-05:00 UTC", discovered_at=stateful["discovered_at"])
    _ended(settled, S.SUCCEEDED, "0.9.0+2.0", "1.0.0+2.0")
    upgrading, running = _upgrading(stateful)
    quarantined, rolled_back = _quarantined(stateful)
    failed, lost = _lost(stateful)
    contested: InfraApp = InfraAppFactory(name="vaultwarden", domain="vault.example.org", state="contested", **stateful)
    contested.contested = {
        "at": timezone.now().isoformat(),
        "changes": ["Service app was changed; it runs vaultwarden/server:1.33.0 as 1.2.0+2.2."],
        "ours": "1.0.0+2.0",
        "theirs": "1.2.0+2.2",
        "fingerprint": "f" * 64,
    }
    contested.save()
    theirs = InfraAppFactory(name="drone", domain="drone.example.org", maintained=True)
    InfraReleaseFactory(app=theirs, version="1.0.1+2.0")
    return OwnApps(settled, held, upgrading, contested, quarantined, failed, theirs, running, rolled_back, lost)


def file_of() -> str:
    """An infra.yml that differs from the apps in three ways: one is new, one has another window, one is behind."""
    text = dump(apply.export()).replace("Mon-Fri 02:00-05:00 UTC", "Sat,Sun 02:00-05:00 UTC")
    text = text.replace("version: 1.0.0+10.2", "version: 0.9.0+10.1")
    source = "https://git.example.org/recipes/hedgedoc.git"
    more = {"recipe": "hedgedoc", "source": source, "domain": "pad.example.org", "owner": "maintainers"}
    return text + "  hedgedoc:\n" + "".join(f"    {key}: {value}\n" for key, value in more.items())


def _ended(app: InfraApp, state: S, before: str, after: str, **fields: Any) -> Upgrade:
    at = timezone.now() - timedelta(hours=9)
    values = {"started_at": at, "finished_at": at + timedelta(seconds=412), "state_at": at, **fields}
    upgrade: Upgrade = UpgradeFactory(app=app, from_version=before, to_version=after, state=state, **values)
    return upgrade


def tell(upgrade: Upgrade, after: float, kind: str, text: str = "", **data: Any) -> None:
    """A line of its trail, so many seconds after its beginning."""
    assert upgrade.started_at
    UpgradeEvent.objects.create(
        upgrade=upgrade, at=upgrade.started_at + timedelta(seconds=after), kind=kind, text=text, data=data
    )


def write_log(upgrade: Upgrade, text: str) -> None:
    folder = folder_of(upgrade)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").write_text(text)


def sample(upgrade: Upgrade, after: float, problem: str = "") -> None:
    """What the probes saw once."""
    said = "answered 502" if problem else "answered 200"
    probes = [{"name": "GET /api/healthz", "ok": not problem, "said": said}, {"name": "TCP 22", "ok": True, "said": ""}]
    tell(upgrade, after, "sample", problem, probes=probes, running={"app": "1/1", "db": "1/1"})


def _upgrading(stateful: dict[str, Any]) -> tuple[InfraApp, Upgrade]:
    app: InfraApp = InfraAppFactory(
        name="forgejo",
        domain="git.example.org",
        state="upgrading",
        running_version="1.0.0+10.2",
        pinned_version="1.0.0+10.2",
        **stateful,
    )
    InfraReleaseFactory(app=app, version="1.1.0+10.3")
    begun = timezone.now() - timedelta(seconds=95)
    taken: Snapshot = SnapshotFactory(app=app, version="1.0.0+10.2", bytes=48_234_496)
    upgrade: Upgrade = UpgradeFactory(
        app=app,
        from_version="1.0.0+10.2",
        to_version="1.1.0+10.3",
        state=S.VERIFYING,
        started_at=begun,
        state_at=begun + timedelta(seconds=71),
        snapshot=taken,
        digests={"app": {"name": "codeberg.org/forgejo/forgejo:10.2"}, "db": {"name": "postgres:16"}},
        facts={"settle_seconds": 300},
        step={"name": "verify"},
        ran_new=True,
    )
    tell(upgrade, 0, S.SNAPSHOTTING, "Recorded 2 services of 1.0.0+10.2, 1 volumes, 2 probes.")
    tell(upgrade, 0.2, "step", "Stopping the app")
    tell(upgrade, 20, S.DEPLOYING, "Snapshot of 1 volume, 46.0 MB, verified after 13.9 s.")
    tell(upgrade, 71, S.VERIFYING, "Converged after 50.8 s.")
    for number in range(4):
        sample(upgrade, 72 + number, "app does not answer: 502" if number == 0 else "")
    write_log(upgrade, LOG)
    return app, upgrade


def _quarantined(stateful: dict[str, Any]) -> tuple[InfraApp, Upgrade]:
    app: InfraApp = InfraAppFactory(name="mumble", domain="talk.example.org", **stateful)
    reason = "During the soak: app restarted, its task ended with 1."
    facts = {
        "logs": "app | F Fatal: could not open database, format 4 is newer than 3\napp | exiting\n",
        "swarm": ["app: completed  task: non-zero exit (1)"],
        "data_back": True,
    }
    upgrade = _ended(app, S.ROLLED_BACK, "1.0.0+2.0", "1.1.0+2.1", reason=reason, facts=facts, ran_new=True)
    steps = (
        (S.SNAPSHOTTING, 0, "1 services recorded."),
        (S.DEPLOYING, 9, "Snapshot of 1 volume, proved."),
        (S.VERIFYING, 31, "Converged after 20.1 s."),
        (S.SOAKING, 34, "1 services and 2 probes are healthy, 3 times in a row."),
        (S.ROLLING_BACK, 64, reason),
        (S.ROLLED_BACK, 99, reason),
    )
    for state, after, text in steps:
        tell(upgrade, after, state, text)
    sample(upgrade, 60, "app does not answer: 502")
    evidence = {"quarantined": reason, "upgrade": upgrade.pk, "swarm": facts["swarm"], "logs": facts["logs"], "samples": []}
    InfraReleaseFactory(app=app, version="1.1.0+2.1", state="quarantined", evidence=evidence)
    return app, upgrade


def _lost(stateful: dict[str, Any]) -> tuple[InfraApp, Upgrade]:
    app: InfraApp = InfraAppFactory(name="matrix", domain="chat.example.org", **stateful)
    reason = (
        "The volume db could not be migrated. The rollback failed, too: no space left on device. cc-ci leaves the app as it is. "
        "The data from before is in the snapshot matrix/20260102T020304."
    )
    upgrade = _ended(app, S.ROLLBACK_FAILED, "1.0.0+2.0", "1.0.1+2.0", reason=reason, ran_new=True)
    for state, after, text in (
        (S.SNAPSHOTTING, 0, "2 services recorded."),
        (S.DEPLOYING, 9, "Snapshot of 1 volume, proved."),
        (S.ROLLING_BACK, 39, "The volume db could not be migrated."),
        (S.ROLLBACK_FAILED, 400, reason),
    ):
        tell(upgrade, after, state, text)
    SnapshotFactory(app=app, upgrade=upgrade)
    return app, upgrade


def hostile_app() -> Upgrade:
    """An app and an upgrade with `HOSTILE` wherever a recipe, a container or a forge can put a text."""
    app: InfraApp = InfraAppFactory(
        name="w" * 63,
        domain="hostile.example.org",
        recipe="hostile",
        running_version="1.0.0+2.0",
        state="contested",
        contested={"changes": [HOSTILE], "ours": "1.0.0+2.0", "theirs": HOSTILE},
        discovery_error=HOSTILE,
        unreadable=[{"tag": HOSTILE[:200], "reason": HOSTILE}],
        policy={"manual_patterns": ["owned"]},
    )
    long = "9.0.0+" + "w" * 180
    upgrade = _ended(
        app,
        S.ROLLED_BACK,
        "1.0.0+2.0",
        long,
        reason=HOSTILE,
        trigger=HOSTILE[:300],
        facts={"logs": f"{HOSTILE}\n" * 30, "swarm": [HOSTILE]},
        digests={HOSTILE[:60]: {"name": HOSTILE}},
    )
    evidence = {"quarantined": HOSTILE, "upgrade": upgrade.pk, "swarm": [HOSTILE]}
    InfraReleaseFactory(app=app, version=long, notes=f"{HOSTILE}\n" * 3, state="quarantined", evidence=evidence)
    tell(upgrade, 0, S.ROLLING_BACK, HOSTILE)
    tell(upgrade, 1, "step", HOSTILE)
    tell(upgrade, 2, "sample", HOSTILE, probes=[{"name": HOSTILE, "ok": False, "said": HOSTILE}], running={HOSTILE: "0/1"})
    write_log(upgrade, f"{HOSTILE}\n" * 40)
    return upgrade
