"""Applies `infra.yml` to the rows, and exports it from them. Deploys nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from infra import lifecycle
from infra.config.diff import Change, Known, diff, renames, to_apply
from infra.config.load import FILE, Declaration, DeclarationError, parse
from infra.config.schema import App, Document, Git, Store
from infra.models import InfraApp, InfraFile, Upgrade
from infra.states import WORKING


class NotApplied(Exception):
    """Nothing was written; the message says why and what to do."""


def place() -> Path:
    """Where the file is: the one applied last, else CC_CI_INFRA_FILE, else `infra.yml` in the data folder."""
    row = InfraFile.objects.first()
    return Path(row.path) if row else Path(settings.CC_CI.infra_file or Path(settings.CC_CI.data_dir) / FILE)


def read(path: Path) -> Declaration:
    """Read the file. Raises DeclarationError, and NotApplied if it does not exist."""
    try:
        return parse(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise NotApplied(f"{path} does not exist. Choose another file with --file; docs/infra.md has an example.") from error
    except OSError as error:
        raise NotApplied(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise NotApplied(f"{path} is not UTF-8.") from error


def export() -> Document:
    """The rows as a file, in its normal form."""
    file = InfraFile.objects.first()
    return Document(
        git=Git.model_validate(file.git if file else {}),
        stores={name: Store.model_validate(store) for name, store in (file.stores if file else {}).items()},
        apps={row.name: app_of(row) for row in InfraApp.objects.filter(declared=True).order_by("position", "name")},
    )


def known() -> dict[str, Known]:
    """All apps, including those that are no longer declared."""
    at_work = set(Upgrade.objects.filter(state__in=WORKING).values_list("app_id", flat=True))
    return {
        row.name: Known(
            app_of(row),
            row.running_version,
            row.declared,
            row.state == InfraApp.State.DRIFTED,
            row.pk in at_work or row.state == InfraApp.State.UPGRADING,
        )
        for row in InfraApp.objects.all()
    }


def differences(declared: Declaration) -> list[Change]:
    """Differences between the file, the rows, and what ran when cc-ci last looked."""
    document = export()
    return diff(declared, known(), document.stores, document.git)


def apply(declared: Declaration, path: Path) -> list[Change]:
    """Apply the file to the rows, all or nothing. Returns all differences; those of a kind in `diff.APPLIED` are written.

    Raises NotApplied if an app is modified concurrently.
    """
    try:
        with transaction.atomic():
            changes = differences(declared)
            rows = {row.name: row for row in InfraApp.objects.all()}
            kept = {(change.app, change.key) for change in changes if change.kind in ("behind", "refused")}
            _file(declared.document, path, bool(to_apply(changes)))
            for change in changes:
                if change.kind == "remove":
                    _update(rows[change.app], {"declared": False})
            renamed = renames(declared.apps, known())
            for position, (name, app) in enumerate(declared.apps.items()):
                if (name, "") in kept:  # a rename that has to wait
                    continue
                row = rows.get(renamed.get(name, name))
                values = {**row_values(app), "name": name, "position": position, "declared": True}
                if row is None:
                    InfraApp.objects.create(**values)
                    continue
                left_out = {_COLUMNS.get(key, key) for owner, key in kept if owner == name}
                _update(row, {column: value for column, value in values.items() if column not in left_out})
    except IntegrityError as error:
        raise NotApplied("Two apps cannot swap stacks in one step: first give one of them another stack.") from error
    return changes


def _file(document: Document, path: Path, again: bool) -> None:
    values: dict[str, Any] = {
        "path": str(path.absolute()),
        "host": settings.CC_CI.host,
        "stores": {name: store.model_dump(mode="json", exclude_defaults=True) for name, store in document.stores.items()},
        "git": document.git.model_dump(mode="json", exclude_defaults=True),
    }
    row = InfraFile.objects.first()
    if row is None or again or any(getattr(row, name) != value for name, value in values.items()):
        InfraFile.objects.update_or_create(pk=1, defaults={**values, "applied_at": timezone.now()})


def _update(row: InfraApp, values: dict[str, Any]) -> None:
    """Write what differs, if the row has not changed since it was read."""
    changed: dict[str, Any] = {name: value for name, value in values.items() if getattr(row, name) != value}
    if not changed:
        return
    if {"stack", "server"} & set(changed):  # what was seen belongs to another stack
        changed |= {"running_version": "", "fingerprint": ""}
    if "source" in changed:
        changed |= {"discovered_at": None}
    if not lifecycle.declare(row, changed):
        raise NotApplied(f"{row.name} was modified concurrently; nothing was applied. Try again.")


#: Keys of the file that have another name in the rows.
_COLUMNS = {"version": "pinned_version"}


def row_values(app: App) -> dict[str, Any]:
    """The columns that an app of the file sets."""
    values = app.model_dump(mode="json", exclude_defaults=True)
    return {
        **{key: getattr(app, key) for key in ("recipe", "source", "domain", "server", "stack", "deployer", "owner", "window")},
        "credential": app.credential or "",
        "pinned_version": app.version,
        "after": list(app.after),
        "env": dict(app.env),
        "secrets": dict(app.secrets),
        "policy": values.get("policy", {}),
        "health": values.get("health", []),
        "snapshots": app.snapshots.model_dump(mode="json") if app.snapshots else {},
    }


def app_of(row: InfraApp) -> App:
    """An app as it is written in the file."""
    names = ("recipe", "source", "domain", "server", "stack", "deployer", "owner", "after", "env", "secrets", "policy", "window")
    values = {name: getattr(row, name) for name in (*names, "health")}
    optional = {"credential": row.credential or None, "snapshots": row.snapshots or None}
    return App.model_validate({**values, **optional, "version": row.pinned_version})


__all__ = ["DeclarationError", "NotApplied", "app_of", "apply", "differences", "export", "known", "place", "read", "row_values"]
