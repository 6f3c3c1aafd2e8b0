"""doctor's check of the server's apps: whether infra.yml is valid, and its stores and secrets are available."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from controlplane.registry import Finding
from infra.config import apply, secret_refs
from infra.config.load import FILE, Declaration, DeclarationError
from infra.config.schema import Store
from infra.config.secret_refs import Unresolved
from infra.deployers.docker.api import listed
from infra.deployers.docker.stacks import LABEL_STACK
from infra.deployers.errors import DeployError
from infra.models import InfraApp, InfraFile
from infra.runtime import inspect
from infra.snapshots import metadata, snapshot
from infra.snapshots.stores import StoreError, open_store

RESTIC_SECONDS = 20.0
NAME = "infra"


def check_infra() -> Iterator[Finding]:
    """Check the infra.yml last applied. Reports ok if there is no file and no app."""
    path = apply.place()
    if not InfraFile.objects.exists() and not path.exists() and not settings.CC_CI.infra_file:
        yield Finding(NAME, "ok", f"no {FILE}: cc-ci manages no apps on this server")
        return
    yield from examine(path)


def examine(path: Path) -> Iterator[Finding]:
    """All findings about one infra.yml."""
    try:
        declared = apply.read(path)
    except DeclarationError as error:
        for problem in error.problems:
            yield Finding(NAME, "error", str(problem), f"$EDITOR +{problem.line} {path}")
        return
    except apply.NotApplied as error:
        yield Finding(NAME, "error", str(error), f"cc-ci infra export > {path}")
        return
    problems = [*_secrets(declared, path.parent), *_stores(declared, path.parent), *_unread(), *_not_held()]
    yield from problems
    if not problems:
        stores = len(declared.document.stores)
        text = f"{len(declared.apps)} apps in {path}, {stores} stores available"
        yield Finding(NAME, "ok", text)


def _secrets(declared: Declaration, folder: Path) -> Iterator[Finding]:
    for name, app in declared.apps.items():
        wanted = {**app.secrets, **{key: value for key, value in app.env.items() if value.startswith(("env:", "file:"))}}
        if app.credential:
            wanted["credential"] = app.credential
        for key, reference in wanted.items():
            try:
                secret_refs.resolve(reference, folder)
            except Unresolved as error:
                yield Finding(NAME, "error", f"{name}, {key}: {error}", _provide(reference))


def _not_held() -> Iterator[Finding]:
    """Secrets in use that would be lost with the host: Swarm never reveals their values."""
    for app in InfraApp.objects.filter(declared=True, owner=InfraApp.Owner.RECONCILED):
        if not inspect.are_here() or not snapshot.is_stateful(app):
            continue
        made = set(app.made_secrets.values_list("name", flat=True))
        given = tuple(f"{app.stack}_{key}_" for key in app.secrets)
        if lost := [name for name in _in_use(app) if name not in made and not name.startswith(given)]:
            text = f"{app.name} uses secrets that cc-ci did not generate: {', '.join(lost)}. They would be lost with this host"
            yield Finding(NAME, "warning", text, f"set them in {FILE}: apps.{app.name}.secrets")


def _in_use(app: InfraApp) -> list[str]:
    """The Swarm secrets that an app's services use; none if Docker does not respond, which another check reports."""
    try:
        services = listed("service", label=[f"{LABEL_STACK}={app.stack}"])
    except DeployError:
        return []
    return metadata.used_secrets({service["ID"]: service["Spec"] for service in services})


def _provide(reference: str) -> str:
    kind, _, where = reference.partition(":")
    return f"set {where} in cc-ci's environment" if kind == "env" else f"install -m 600 /dev/stdin {where}"


def _stores(declared: Declaration, folder: Path) -> Iterator[Finding]:
    for name, store in declared.document.stores.items():
        if problem := reach(store, folder):
            fix = f"install -d -m 700 {store.folder}" if store.folder else f"restic -r {store.restic} cat config"
            yield Finding(NAME, "error", f"store {name}: {problem}", fix)


def reach(store: Store, folder: Path) -> str:
    """Why a store cannot be used; empty if it can. `folder`: where infra.yml is."""
    try:
        open_store(store, folder, folder).reach(RESTIC_SECONDS)
    except StoreError as error:
        return str(error)
    return ""


def _unread() -> Iterator[Finding]:
    for app in InfraApp.objects.filter(declared=True).exclude(discovery_error=""):
        yield Finding(NAME, "warning", app.discovery_error, f"cc-ci infra releases {app.name}")
