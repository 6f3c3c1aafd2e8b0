"""Snapshots of an app's volumes: taken while it is stopped, proved by reading them back, and put back byte for byte."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from django.utils import timezone

from infra import bundles
from infra.deployers import trees
from infra.deployers.docker_cli import call
from infra.deployers.manifest import Manifest, joined, of_file
from infra.deployers.volumes import Volume
from infra.models import InfraApp, Snapshot, Upgrade
from infra.schema import Snapshots
from infra.states import WORKING, UpgradeState
from infra.stores import Store, StoreError

#: A snapshot may be so much bigger than the last one, and the disk must not be full afterwards.
_ROOM = 1.2
_REST = 256 << 20


class Copier(Protocol):
    """What copies volumes (`infra.deployers.volumes.Volumes`)."""

    def pack(self, volume: str, target: Path) -> Manifest: ...

    def replace(self, volume: Volume, source: Path) -> Manifest: ...

    def extracted(self, source: Path) -> Manifest: ...

    def sweep(self) -> None: ...


class NotProved(Exception):
    """A snapshot is not what was there; the message says where."""


def wanted(app: InfraApp) -> Snapshots:
    return Snapshots.model_validate(app.snapshots) if app.snapshots else Snapshots(of="none")


def is_stateful(app: InfraApp) -> bool:
    return wanted(app).of == "volumes"


def take(
    app: InfraApp,
    upgrade: Upgrade,
    volumes: Sequence[Volume],
    copier: Copier,
    check: Callable[[], None],
) -> Snapshot:
    """Copy the volumes of an app that is stopped into its store, and prove the copy. May be repeated.

    The secrets that cc-ci made go with it, encrypted. Raises StoreError, NotProved, DeployError and OSError; then nothing is
    left behind but what the next attempt replaces.
    """
    if done := app.taken.filter(upgrade=upgrade, proved=True).first():
        return done
    name = wanted(app).store
    store = bundles.store_of(name)
    manifests: dict[str, Manifest] = {}

    def fill(folder: Path) -> None:
        manifests.clear()
        for number, volume in enumerate(volumes):
            manifest = manifests[volume.name] = copier.pack(volume.name, folder / f"{number}.tar")
            (folder / f"{number}.manifest").write_text(manifest.text)
        (folder / bundles.SECRETS).write_text(json.dumps(bundles.secrets(), indent=1))
        (folder / bundles.BUNDLE).write_text(json.dumps(bundles.describe(app, upgrade, volumes, manifests), indent=1))

    copier.sweep()
    location = store.put(_name(app, upgrade), fill, check)
    try:
        _prove(store, location, manifests, copier, check)
    except NotProved:
        store.drop(location)
        raise
    return Snapshot.objects.create(
        app=app,
        upgrade=upgrade,
        version=upgrade.from_version,
        store=name,
        location=location,
        proved=True,
        bytes=bundles.size_of(manifests),
        manifest=joined(manifests.items()),
        taken_at=timezone.now(),
    )


def _name(app: InfraApp, upgrade: Upgrade) -> str:
    """The same each time it is asked for, and another one after the database was lost, when numbers begin anew."""
    return f"{app.name}/{upgrade.created_at:%Y%m%dT%H%M%SZ}-{upgrade.pk}-{upgrade.from_version.replace('/', '_')}"


def _prove(store: Store, location: str, manifests: dict[str, Manifest], copier: Copier, check: Callable[[], None]) -> None:
    """Read the snapshot back from its store into a volume of its own, and compare paths, modes, owners and SHA-256."""
    with store.get(location, check) as folder:
        for entry in bundles.read(folder)["volumes"]:
            check()
            found = copier.extracted(folder / entry["tar"])
            if differences := manifests[entry["name"]].differences(found):
                raise NotProved(f"The snapshot of {entry['name']} is not what was in it: {'; '.join(differences)}.")


def put_back(snapshot: Snapshot, copier: Copier, check: Callable[[], None]) -> None:
    """Put a snapshot's data in the place of what is in the app's volumes, which nobody may use. May be repeated.

    Raises StoreError, NotProved, DeployError and OSError.
    """
    copier.sweep()
    store = bundles.store_of(snapshot.store)
    with store.get(snapshot.location, check) as folder:
        entries = bundles.read(folder)["volumes"]
        known = [(entry, Manifest.parse((folder / entry["manifest"]).read_text())) for entry in entries]
        if snapshot.manifest != joined((entry["name"], manifest) for entry, manifest in known):
            raise NotProved(f"The list of what is in the snapshot {snapshot.location} was changed since it was taken.")
        for entry, manifest in known:  # before anything is emptied
            check()
            if differences := manifest.differences(_read(folder / entry["tar"])):
                raise NotProved(f"The snapshot {snapshot.location} is damaged: {'; '.join(differences)}. Nothing was put back.")
        for entry, manifest in known:
            check()
            volume = Volume(entry["name"], entry["driver"], entry["options"], entry["labels"])
            found = copier.replace(volume, folder / entry["tar"])
            if differences := manifest.differences(found):
                raise NotProved(f"{entry['name']} is not as it was in the snapshot: {'; '.join(differences)}.")


def _read(tar: Path) -> Manifest:
    try:
        return of_file(tar)
    except (tarfile.TarError, OSError) as error:
        raise NotProved(f"{tar.name} of the snapshot cannot be read: {error}. Nothing was put back.") from error


def kept(app: InfraApp) -> dict[int, str]:
    """The snapshots that the policy keeps, each with why."""
    found: dict[int, str] = {}
    rows = list(app.taken.all())
    for snapshot in rows[: wanted(app).keep]:
        found[snapshot.pk] = "one of the newest"
    last = app.upgrades.filter(state=UpgradeState.SUCCEEDED).exclude(snapshot=None).first()
    if last and last.snapshot_id:
        found[last.snapshot_id] = f"the way back from {last.to_version}, which runs"
    for upgrade in app.upgrades.filter(state__in=[*WORKING, UpgradeState.ROLLBACK_FAILED]).exclude(snapshot=None):
        found[upgrade.snapshot_id or 0] = f"needed by the upgrade to {upgrade.to_version}"
        data = upgrade.asked.get("data")
        if isinstance(data, int):
            found[data] = f"needed by the upgrade to {upgrade.to_version}"
    return found


def prune(app: InfraApp) -> list[str]:
    """Drop the snapshots that the policy does not keep. Gives what could not be dropped."""
    reasons, left = kept(app), []
    for snapshot in app.taken.all():
        if reason := reasons.get(snapshot.pk):
            if snapshot.kept_because != reason:
                Snapshot.objects.filter(pk=snapshot.pk).update(kept_because=reason)
            continue
        try:
            bundles.store_of(snapshot.store).drop(snapshot.location)
        except (StoreError, OSError) as error:
            left.append(f"{snapshot}: {error}")
            continue
        snapshot.delete()
    return left


def no_room(app: InfraApp) -> str:
    """Why there is no room for a snapshot, as far as can be told beforehand; empty when there is."""
    if not is_stateful(app):
        return ""
    try:
        free = bundles.store_of(wanted(app).store).free()
    except StoreError as error:
        return str(error)
    if free is None:
        return ""
    needed = int(_needed(app) * _ROOM) + _REST
    if free >= needed:
        return ""
    return f"{needed >> 20} MB are needed in the store {wanted(app).store}, and {free >> 20} MB are free."


def _needed(app: InfraApp) -> int:
    """Bytes in the app's volumes: as Docker says, else as in the last snapshot."""
    names = {f"{app.stack}_"}
    done = call("system", "df", "--verbose", "--format", "{{json .Volumes}}", timeout=60)
    try:
        rows = json.loads(done.stdout or "[]") or []
    except ValueError:
        rows = []
    sizes = [_bytes(str(row.get("Size", ""))) for row in rows if str(row.get("Name", "")).startswith(tuple(names))]
    last = app.taken.first()
    return sum(sizes) or (last.bytes if last else 0)


def _bytes(text: str) -> int:
    """Docker's `1.2MB` in bytes; 0 for what is none."""
    units = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.rstrip("kMGTB")
    try:
        return int(float(number) * units[text[len(number) :]])
    except (ValueError, KeyError):
        return 0


def scratch_rest(upgrade_folder: Path) -> None:
    """Remove an upgrade's checkouts once nobody needs them; its log stays."""
    for name in ("old", "new", "work"):
        trees.remove(upgrade_folder / name)
