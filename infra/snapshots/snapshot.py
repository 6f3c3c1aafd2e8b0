"""Snapshots of a stopped app's volumes: created, verified by reading them back, and restored byte for byte."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from django.utils import timezone

from infra.config.schema import Snapshots
from infra.deployers.docker.cli import call
from infra.deployers.docker.tar_manifest import Manifest, joined, of_file
from infra.deployers.docker.volumes import Volume, Volumes
from infra.deployers.isolation import trees
from infra.models import InfraApp, Snapshot, Upgrade
from infra.snapshots import metadata
from infra.snapshots.stores import Store, StoreError
from infra.states import WORKING, UpgradeState

#: How much larger than the last one a snapshot may be, and what must stay free on the disk afterwards.
_ROOM = 1.2
_REST = 256 << 20


class NotProved(Exception):
    """A snapshot differs from its source; the message says where."""


def wanted(app: InfraApp) -> Snapshots:
    return Snapshots.model_validate(app.snapshots) if app.snapshots else Snapshots(of="none")


def is_stateful(app: InfraApp) -> bool:
    return wanted(app).of == "volumes"


def take(
    app: InfraApp,
    upgrade: Upgrade,
    volumes: Sequence[Volume],
    copier: Volumes,
    check: Callable[[], None],
) -> Snapshot:
    """Copy a stopped app's volumes into its store, and verify the copy. Idempotent.

    Includes the secrets that cc-ci generated, encrypted. Raises StoreError, NotProved, DeployError and OSError, leaving nothing
    behind but what the next attempt replaces.
    """
    if done := app.taken.filter(upgrade=upgrade, proved=True).first():
        return done
    name = wanted(app).store
    store = metadata.store_of(name)
    manifests: dict[str, Manifest] = {}

    def fill(folder: Path) -> None:
        manifests.clear()
        for number, volume in enumerate(volumes):
            manifest = manifests[volume.name] = copier.pack(volume.name, folder / f"{number}.tar")
            (folder / f"{number}.manifest").write_text(manifest.text)
        (folder / metadata.SECRETS).write_text(json.dumps(metadata.secrets(), indent=1))
        (folder / metadata.BUNDLE).write_text(json.dumps(metadata.describe(app, upgrade, volumes, manifests), indent=1))

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
        bytes=metadata.size_of(manifests),
        manifest=joined(manifests.items()),
        taken_at=timezone.now(),
    )


def _name(app: InfraApp, upgrade: Upgrade) -> str:
    """Stable per upgrade, and unique even after the database was lost and numbering restarts."""
    return f"{app.name}/{upgrade.created_at:%Y%m%dT%H%M%SZ}-{upgrade.pk}-{upgrade.from_version.replace('/', '_')}"


def _prove(store: Store, location: str, manifests: dict[str, Manifest], copier: Volumes, check: Callable[[], None]) -> None:
    """Read the snapshot back from its store into a temporary volume; compare paths, modes, owners and SHA-256."""
    with store.get(location, check) as folder:
        for entry in metadata.read(folder)["volumes"]:
            check()
            found = copier.extracted(folder / entry["tar"])
            if differences := manifests[entry["name"]].differences(found):
                raise NotProved(f"The snapshot of {entry['name']} differs from the volume: {'; '.join(differences)}.")


def put_back(snapshot: Snapshot, copier: Volumes, check: Callable[[], None]) -> None:
    """Replace the data in the app's volumes, which must not be in use, with a snapshot's. Idempotent.

    Raises StoreError, NotProved, DeployError and OSError.
    """
    copier.sweep()
    store = metadata.store_of(snapshot.store)
    with store.get(snapshot.location, check) as folder:
        entries = metadata.read(folder)["volumes"]
        known = [(entry, Manifest.parse((folder / entry["manifest"]).read_text())) for entry in entries]
        if snapshot.manifest != joined((entry["name"], manifest) for entry, manifest in known):
            raise NotProved(f"The manifest of the snapshot {snapshot.location} was modified after the snapshot was created.")
        for entry, manifest in known:  # before emptying anything
            check()
            if differences := manifest.differences(_read(folder / entry["tar"])):
                raise NotProved(f"The snapshot {snapshot.location} is damaged: {'; '.join(differences)}. Nothing was restored.")
        for entry, manifest in known:
            check()
            volume = Volume(entry["name"], entry["driver"], entry["options"], entry["labels"])
            found = copier.replace(volume, folder / entry["tar"])
            if differences := manifest.differences(found):
                raise NotProved(f"{entry['name']} differs from the snapshot after restoring it: {'; '.join(differences)}.")


def _read(tar: Path) -> Manifest:
    try:
        return of_file(tar)
    except (tarfile.TarError, OSError) as error:
        raise NotProved(f"Cannot read the snapshot's {tar.name}: {error}. Nothing was restored.") from error


def kept(app: InfraApp) -> dict[int, str]:
    """The snapshots that the retention policy keeps, each with the reason."""
    found: dict[int, str] = {}
    rows = list(app.taken.all())
    for snapshot in rows[: wanted(app).keep]:
        found[snapshot.pk] = "one of the newest"
    last = app.upgrades.filter(state=UpgradeState.SUCCEEDED).exclude(snapshot=None).first()
    if last and last.snapshot_id:
        found[last.snapshot_id] = f"needed for a rollback from {last.to_version}, which is running"
    for upgrade in app.upgrades.filter(state__in=[*WORKING, UpgradeState.ROLLBACK_FAILED]).exclude(snapshot=None):
        found[upgrade.snapshot_id or 0] = f"needed by the upgrade to {upgrade.to_version}"
        if data := upgrade.request.data:
            found[data] = f"needed by the upgrade to {upgrade.to_version}"
    return found


def prune(app: InfraApp) -> list[str]:
    """Delete the snapshots that the retention policy does not keep. Returns those that could not be deleted."""
    reasons, left = kept(app), []
    for snapshot in app.taken.all():
        if reason := reasons.get(snapshot.pk):
            if snapshot.kept_because != reason:
                Snapshot.objects.filter(pk=snapshot.pk).update(kept_because=reason)
            continue
        try:
            metadata.store_of(snapshot.store).drop(snapshot.location)
        except (StoreError, OSError) as error:
            left.append(f"{snapshot}: {error}")
            continue
        snapshot.delete()
    return left


def no_room(app: InfraApp) -> str:
    """Why there is not enough space for a snapshot, as far as can be known in advance; empty if there is."""
    if not is_stateful(app):
        return ""
    try:
        free = metadata.store_of(wanted(app).store).free()
    except StoreError as error:
        return str(error)
    if free is None:
        return ""
    needed = int(_needed(app) * _ROOM) + _REST
    if free >= needed:
        return ""
    return f"The store {wanted(app).store} needs {needed >> 20} MB, but only {free >> 20} MB are free."


def _needed(app: InfraApp) -> int:
    """Bytes in the app's volumes: as Docker reports them, else as in the last snapshot."""
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
    """Parse Docker's `1.2MB` to bytes; 0 if it is not a size."""
    units = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.rstrip("kMGTB")
    try:
        return int(float(number) * units[text[len(number) :]])
    except (ValueError, KeyError):
        return 0


def scratch_rest(upgrade_folder: Path) -> None:
    """Remove an upgrade's checkouts when they are no longer needed; its log stays."""
    for name in ("old", "new", "work"):
        trees.remove(upgrade_folder / name)
