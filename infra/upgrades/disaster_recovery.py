"""Rebuild a lost host: deploy every app that does not run, at its pin, in order, with the data of its newest snapshot.

Needs `infra.yml`, the stores, and the key that encrypts the secrets in the snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Literal

from django.db import transaction

from controlplane.secrets import SecretUnreadable, decrypt
from infra.config import apply
from infra.deployers.errors import DeployError
from infra.models import AppSecret, InfraApp, Snapshot, Upgrade
from infra.releases import discovery
from infra.releases.evaluate import command, readable
from infra.runtime import inspect
from infra.runtime.drift import Refused
from infra.runtime.inspect import NotReachable
from infra.snapshots import metadata
from infra.snapshots import snapshot as snapshots
from infra.snapshots.stores import StoreError
from infra.states import UpgradeState
from infra.upgrade_records import Request
from infra.upgrades import enqueue
from infra.upgrades.install import KIND, unfinished

Volumes = Literal["", "keep", "replace"]
Start = Callable[[Upgrade], object]


class Runs(Refused):
    """There is nothing to deploy."""


def levels(apps: Iterable[InfraApp]) -> list[list[InfraApp]]:
    """The apps in the order of `after`: each level needs only earlier ones. Pure."""
    left, done, found = list(apps), set[str](), []
    names = {app.name for app in left}
    while left:
        ready = [app for app in left if not (set(app.after) & names) - done]
        if not ready:  # infra.yml is checked for cycles, changes in the database are not
            ready = left
        found.append(ready)
        done |= {app.name for app in ready}
        left = [app for app in left if app not in ready]
    return found


def runs(app: InfraApp) -> bool:
    """Whether anything of the app runs. Raises Refused if that cannot be determined."""
    try:
        return bool(inspect.see(app).parts)
    except (NotReachable, DeployError) as error:
        raise Refused(f"Cannot inspect what runs of {app.name}: {error}") from error


def recover(apps: Iterable[InfraApp]) -> list[str]:
    """Record what the stores contain: a row for each snapshot, and the secrets that cc-ci once generated. Returns the problems.

    Known secrets keep their values. Safe to repeat.
    """
    problems = []
    newest: dict[tuple[str, str], Mapping[str, str]] = {}
    for app in apps:
        if not snapshots.is_stateful(app):
            continue
        try:
            found = metadata.in_store(app, snapshots.wanted(app).store)
        except (StoreError, OSError) as error:
            problems.append(f"{app.name}: {error}")
            continue
        metadata.know(app, found)
        for one in found:
            for secret in one.secrets:
                key = (secret["app"], secret["name"])
                if key not in newest or newest[key]["taken_at"] < one.taken_at.isoformat():
                    newest[key] = {**secret, "taken_at": one.taken_at.isoformat()}
    try:
        _know_secrets(newest)
    except SecretUnreadable:
        problems.append(
            "The secrets in the snapshots were encrypted with another key. Add the lost host's key to "
            "CC_CI_SECRET_KEYS (after the current one, separated by a comma), and run the command again."
        )
    return problems


def _know_secrets(found: Mapping[tuple[str, str], Mapping[str, str]]) -> None:
    """Raises SecretUnreadable; then none is stored."""
    apps = {app.name: app for app in InfraApp.objects.all()}
    with transaction.atomic():
        for (app, name), secret in found.items():
            if app in apps:
                AppSecret.objects.get_or_create(app=apps[app], name=name, defaults={"value": decrypt(secret["value"])})


def deploy(app: InfraApp, who: str, *, snapshot: int | None = None, fresh: bool = False, volumes: Volumes = "") -> Upgrade:
    """Unless `fresh`, `recover` first; then `bring_up`. Raises Refused."""
    if not fresh and (problems := recover(InfraApp.objects.filter(declared=True, owner=InfraApp.Owner.RECONCILED))):
        raise Refused(" ".join(problems))
    found = app.taken.filter(pk=snapshot).first() if snapshot else None
    if snapshot and found is None:
        raise Refused(f"{app.name} has no snapshot {snapshot}. See: {command('snapshots', app.name)}")
    return bring_up(app, who, snapshot=found, fresh=fresh, volumes=volumes)


def bring_up(
    app: InfraApp,
    who: str,
    *,
    snapshot: Snapshot | None = None,
    fresh: bool = False,
    volumes: Volumes = "",
    start: Start | None = None,
) -> Upgrade:
    """Start deploying an app that does not run, at its pin: with its newest snapshot, with `snapshot`, or, if `fresh`, without
    data. Raises Refused, and then changes nothing.
    """
    if app.owner != InfraApp.Owner.RECONCILED:
        raise Refused(f"{app.name} is managed by its maintainers. They run: abra app deploy {app.domain}")
    if not app.declared:
        raise Refused(f"{app.name} is no longer in infra.yml.")
    if runs(app):
        raise Runs(f"{app.name} is already running.")
    try:
        discovery.discover(app)
    except discovery.NotDiscovered as error:
        raise Refused(str(error)) from error
    if not volumes and (half_done := unfinished(app)):  # data that a former attempt restored may be replaced
        volumes = "replace" if half_done.data else "keep"
    data = None if fresh or volumes == "keep" else snapshot or _wanted(app)
    if data:
        _fits(app, data)
    request = Request(kind=KIND, volumes=volumes, secrets=_secrets(app, data), data=data.pk if data else None)
    return enqueue.begin(app, app.pinned_version, f"{who}, by deploy", from_version="", start=start, request=request)


def _wanted(app: InfraApp) -> Snapshot | None:
    """The newest snapshot of an app that keeps data. Raises Refused if there is none."""
    if not snapshots.is_stateful(app):
        return None
    if found := app.taken.first():
        return found
    raise Refused(
        f"{app.name} has no snapshot in the store {snapshots.wanted(app).store}. To start without data: "
        f"{command('deploy', app.name)} --fresh"
    )


def _fits(app: InfraApp, data: Snapshot) -> None:
    """Check that the pinned version may run on the data. Raises Refused: a version is never lowered."""
    pinned, taken = readable(app.pinned_version), readable(data.version)
    if pinned and taken and pinned < taken:
        raise Refused(
            f"infra.yml is behind: it pins {app.name} to {pinned}, but the newest snapshot is of {taken}. Set `version: "
            f"{taken}` in {apply.place()}, or choose an older snapshot: {command('snapshots', app.name)}"
        )


def _secrets(app: InfraApp, data: Snapshot | None) -> list[str]:
    """The secrets that the data was used with. Raises Refused."""
    if data is None:
        return []
    try:
        return [str(name) for name in metadata.peek(data.store, data.location).bundle.get("secrets", [])]
    except (StoreError, OSError) as error:
        raise Refused(str(error)) from error


@dataclass(frozen=True)
class Outcome:
    """The outcome for one app: a word, and a sentence."""

    app: InfraApp
    word: Literal["runs", "begun", "up", "failed", "refused", "waits", "maintainers"]
    text: str
    upgrade: Upgrade | None = None

    @property
    def good(self) -> bool:
        return self.word in ("runs", "up", "maintainers")


def begin_level(apps: Iterable[InfraApp], who: str, bad: set[str], start: Start | None = None) -> Iterator[Outcome]:
    """Start each app of a level that does not run; resume one that was already started. `bad`: names of apps that did not come
    up. `start`: how to execute each, by default in a process of its own.
    """
    for app in apps:
        if app.owner != InfraApp.Owner.RECONCILED:
            yield Outcome(app, "maintainers", f"{app.name} is managed by its maintainers. They run: abra app deploy {app.domain}")
        elif missing := sorted(bad & set(app.after)):
            yield Outcome(app, "waits", f"{app.name} was not started: it depends on {', '.join(missing)}.")
        else:
            yield _begin(app, who, start)


def _begin(app: InfraApp, who: str, start: Start | None) -> Outcome:
    if at_work := app.under_way():
        return Outcome(app, "begun", f"{app.name} {at_work.to_version}: resumed.", at_work)
    try:
        upgrade = bring_up(app, who, start=start)
    except Runs:
        return Outcome(app, "runs", f"{app.name} is already running; left alone.")
    except Refused as error:
        return Outcome(app, "refused", f"{app.name}: {error}")
    return Outcome(app, "begun", f"{app.name} {upgrade.to_version}: started.", upgrade)


def ended(outcome: Outcome) -> Outcome:
    """The outcome of a started app, once its upgrade has ended."""
    upgrade = outcome.upgrade
    if upgrade is None:
        return outcome
    upgrade.refresh_from_db()
    app = outcome.app
    if upgrade.state == UpgradeState.SUCCEEDED:
        data = Snapshot.objects.filter(pk=upgrade.request.data or 0).first()
        words = f" with the data of {data.version}, {data.taken_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if data else ""
        return Outcome(app, "up", f"{app.name} {upgrade.to_version} is up{words}.", upgrade)
    return Outcome(app, "failed", f"{app.name} did not come up: {upgrade.reason}", upgrade)
