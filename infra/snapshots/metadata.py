"""What a snapshot contains beside its volumes: `bundle.json`, which describes it, and the secrets that cc-ci generated.

This is all that is left when a host is lost, so it must be readable without the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from controlplane.secrets import encrypt, reveal
from infra.config.schema import Store as Declared
from infra.deployers.docker.tar_manifest import Manifest, joined
from infra.deployers.docker.volumes import Volume
from infra.models import AppSecret, InfraApp, InfraFile, Snapshot, Upgrade
from infra.snapshots.stores import Store, StoreError, open_store

BUNDLE = "bundle.json"
#: All secrets that cc-ci generated, of every app: an app without data has no snapshot.
SECRETS = "secrets.json"
FORMAT = 1


def store_of(name: str) -> Store:
    """A store of the infra.yml last applied. Raises StoreError."""
    file = InfraFile.objects.first()
    declared = (file.stores if file else {}).get(name)
    if file is None or declared is None:
        raise StoreError(f"infra.yml no longer has a store {name!r}.")
    scratch = Path(settings.CC_CI.data_dir) / "infra" / "restic"
    return open_store(Declared.model_validate(declared), Path(file.path).parent, scratch)


def size_of(manifests: Mapping[str, Manifest]) -> int:
    return sum(manifest.size for manifest in manifests.values())


def describe(app: InfraApp, upgrade: Upgrade, volumes: Sequence[Volume], manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The contents of `bundle.json`."""
    return {
        "format": FORMAT,
        "app": app.name,
        "recipe": app.recipe,
        "domain": app.domain,
        "stack": app.stack,
        "version": upgrade.from_version,
        "commit": upgrade.facts.get("commits", {}).get("old", ""),
        "taken_at": timezone.now().isoformat(),
        "bytes": size_of(manifests),
        "manifest": joined(manifests.items()),
        "secrets": used_secrets(upgrade.specs),
        "volumes": [
            {
                **volume.as_dict(),
                "tar": f"{number}.tar",
                "manifest": f"{number}.manifest",
                "sha256": manifests[volume.name].sha256,
            }
            for number, volume in enumerate(volumes)
        ],
    }


def read(folder: Path) -> dict[str, Any]:
    """Read the metadata in a snapshot's folder. Raises StoreError."""
    try:
        return _bundle_of((folder / BUNDLE).read_bytes(), str(folder))
    except OSError as error:
        raise StoreError(f"Cannot read the snapshot in {folder}: {error}") from error


def _bundle_of(text: bytes, where: str) -> dict[str, Any]:
    try:
        bundle = json.loads(text)
        if bundle["format"] != FORMAT:
            raise StoreError(
                f"The snapshot in {where} has format {bundle['format']}; this version of cc-ci reads format {FORMAT}."
            )
        datetime.fromisoformat(bundle["taken_at"])
        return dict(bundle)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"Cannot read the snapshot in {where}: {error}") from error


def used_secrets(specs: Mapping[str, Any]) -> list[str]:
    """The Swarm secrets that services use, by name."""
    containers = [spec.get("TaskTemplate", {}).get("ContainerSpec", {}) for spec in specs.values()]
    return sorted({str(secret["SecretName"]) for one in containers for secret in one.get("Secrets") or []})


def secrets() -> list[dict[str, str]]:
    """All secrets that cc-ci generated, encrypted with the first key."""
    rows = AppSecret.objects.select_related("app").order_by("app__name", "name")
    return [
        {"app": row.app.name, "name": row.name, "value": encrypt(reveal(row.value)), "made_at": row.made_at.isoformat()}
        for row in rows
    ]


@dataclass(frozen=True)
class Peeked:
    """A snapshot in a store, without its data."""

    store: str
    location: str
    bundle: Mapping[str, Any]
    secrets: Sequence[Mapping[str, str]]

    @property
    def taken_at(self) -> datetime:
        return datetime.fromisoformat(self.bundle["taken_at"])


def in_store(app: InfraApp, name: str) -> list[Peeked]:
    """The snapshots of an app's stack in the store `name`, newest first. Raises StoreError.

    Searches under other names only if there is none under the app's: it may have been renamed.
    """
    store = store_of(name)
    for locations in (store.locations(app.name), store.locations()):
        looked = [peek(name, location) for location in locations]
        if found := [one for one in looked if one.bundle["stack"] == app.stack]:
            return sorted(found, key=lambda one: one.taken_at, reverse=True)
    return []


def peek(name: str, location: str) -> Peeked:
    """A snapshot in the store `name`. Raises StoreError."""
    files = store_of(name).peek(location, (BUNDLE, SECRETS), lambda: None)
    if BUNDLE not in files:
        raise StoreError(f"The snapshot {location} in the store {name} has no {BUNDLE}.")
    return Peeked(name, location, _bundle_of(files[BUNDLE], location), _secrets_of(files.get(SECRETS, b"[]"), location))


def _secrets_of(text: bytes, where: str) -> list[dict[str, str]]:
    try:
        return [{key: str(row[key]) for key in ("app", "name", "value", "made_at")} for row in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"Cannot read the secrets in the snapshot {where}: {error}") from error


def know(app: InfraApp, found: Iterable[Peeked]) -> None:
    """Create a row for each snapshot in a store. They count as unverified: each is read before it is restored."""
    known = {(row.store, row.location) for row in app.taken.all()}
    for one in found:
        if any(store == one.store and one.location.startswith(location) for store, location in known):  # restic's short ids
            continue
        Snapshot.objects.create(
            app=app,
            version=one.bundle["version"],
            store=one.store,
            location=one.location,
            bytes=one.bundle["bytes"],
            manifest=one.bundle["manifest"],
            taken_at=one.taken_at,
        )
