"""A lost machine comes back: every app that does not run is brought up, pinned, in order, with the data of its newest snapshot.

What is needed: `infra.yml`, the stores, and the key that the secrets in the snapshots are encrypted with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Literal

from django.db import transaction

from controlplane.secrets import SecretUnreadable, decrypt
from infra import applying, bundles, releases, running, snapshots, wanting
from infra.bringing_up import KIND, unfinished
from infra.deployers.base import DeployError
from infra.looking import command, readable
from infra.models import AppSecret, InfraApp, Snapshot, Upgrade
from infra.ownership import Refused
from infra.running import NotReachable
from infra.states import WORKING, UpgradeState
from infra.stores import StoreError

Volumes = Literal["", "keep", "replace"]
Start = Callable[[Upgrade], object]


class Runs(Refused):
    """There is nothing to bring up."""


def levels(apps: Iterable[InfraApp]) -> list[list[InfraApp]]:
    """The apps in the order of `after`: those of one level need only those of the levels before. Pure."""
    left, done, found = list(apps), set[str](), []
    names = {app.name for app in left}
    while left:
        ready = [app for app in left if not (set(app.after) & names) - done]
        if not ready:  # infra.yml is checked for circles; what was changed in the database is not
            ready = left
        found.append(ready)
        done |= {app.name for app in ready}
        left = [app for app in left if app not in ready]
    return found


def runs(app: InfraApp) -> bool:
    """Whether anything of the app runs. Raises Refused when that cannot be seen."""
    try:
        return bool(running.see(app).parts)
    except (NotReachable, DeployError) as error:
        raise Refused(f"What runs of {app.name} cannot be looked at: {error}") from error


def recover(apps: Iterable[InfraApp]) -> list[str]:
    """Know again what the stores hold: a row for each snapshot, and the secrets that cc-ci once made. Gives what failed.

    A secret that is known already stays as it is. May be repeated.
    """
    problems = []
    newest: dict[tuple[str, str], Mapping[str, str]] = {}
    for app in apps:
        if not snapshots.is_stateful(app):
            continue
        try:
            found = bundles.in_store(app, snapshots.wanted(app).store)
        except (StoreError, OSError) as error:
            problems.append(f"{app.name}: {error}")
            continue
        bundles.know(app, found)
        for one in found:
            for secret in one.secrets:
                key = (secret["app"], secret["name"])
                if key not in newest or newest[key]["taken_at"] < one.taken_at.isoformat():
                    newest[key] = {**secret, "taken_at": one.taken_at.isoformat()}
    try:
        _know_secrets(newest)
    except SecretUnreadable:
        problems.append(
            "The secrets in the snapshots were encrypted with another key: put the key of the lost machine into "
            "CC_CI_SECRET_KEYS (after the one that is there, with a comma), and type it again."
        )
    return problems


def _know_secrets(found: Mapping[tuple[str, str], Mapping[str, str]]) -> None:
    """Raises SecretUnreadable; then none is taken over."""
    apps = {app.name: app for app in InfraApp.objects.all()}
    with transaction.atomic():
        for (app, name), secret in found.items():
            if app in apps:
                AppSecret.objects.get_or_create(app=apps[app], name=name, defaults={"value": decrypt(secret["value"])})


def deploy(app: InfraApp, who: str, *, snapshot: int | None = None, fresh: bool = False, volumes: Volumes = "") -> Upgrade:
    """What the stores hold is known first, unless it is not asked for; then `bring_up`. Raises Refused."""
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
    """Begin to bring up an app that does not run, at its pinned version: with its newest snapshot, or with `snapshot`; `fresh`:
    with no data. Raises Refused, and changes nothing then.
    """
    if app.owner != InfraApp.Owner.RECONCILED:
        raise Refused(f"{app.name} is its maintainers'. They type: abra app deploy {app.domain}")
    if not app.declared:
        raise Refused(f"{app.name} is not in infra.yml any more.")
    if runs(app):
        raise Runs(f"{app.name} runs already.")
    try:
        releases.discover(app)
    except releases.NotDiscovered as error:
        raise Refused(str(error)) from error
    if not volumes and (half_done := unfinished(app)):  # what a former attempt had put there is no loss
        volumes = "replace" if half_done["data"] else "keep"
    data = None if fresh or volumes == "keep" else snapshot or _wanted(app)
    if data:
        _fits(app, data)
    asked = {"kind": KIND, "volumes": volumes, "secrets": _secrets(app, data), "data": data.pk if data else None}
    return wanting.begin(app, app.pinned_version, f"{who}, by deploy", from_version="", start=start, **asked)


def _wanted(app: InfraApp) -> Snapshot | None:
    """The newest snapshot of an app that keeps data. Raises Refused when there is none."""
    if not snapshots.is_stateful(app):
        return None
    if found := app.taken.first():
        return found
    raise Refused(
        f"There is no snapshot of {app.name} in the store {snapshots.wanted(app).store}. "
        f"To begin with no data: {command('deploy', app.name)} --fresh"
    )


def _fits(app: InfraApp, data: Snapshot) -> None:
    """Whether the pinned version may run on the data. Raises Refused: a version is never lowered."""
    pinned, taken = readable(app.pinned_version), readable(data.version)
    if pinned and taken and pinned < taken:
        raise Refused(
            f"infra.yml is behind: it pins {app.name} to {pinned}, and its newest snapshot is of {taken}. "
            f"Write `version: {taken}` into {applying.place()}, or name an older snapshot: {command('snapshots', app.name)}"
        )


def _secrets(app: InfraApp, data: Snapshot | None) -> list[str]:
    """The secrets that the data was used with. Raises Refused."""
    if data is None:
        return []
    try:
        return [str(name) for name in bundles.peek(data.store, data.location).bundle.get("secrets", [])]
    except (StoreError, OSError) as error:
        raise Refused(str(error)) from error


@dataclass(frozen=True)
class Outcome:
    """What came of one app: a word, and a sentence."""

    app: InfraApp
    word: Literal["runs", "begun", "up", "failed", "refused", "waits", "maintainers"]
    text: str
    upgrade: Upgrade | None = None

    @property
    def good(self) -> bool:
        return self.word in ("runs", "up", "maintainers")


def begin_level(apps: Iterable[InfraApp], who: str, bad: set[str], start: Start | None = None) -> Iterator[Outcome]:
    """Begin each app of a level that does not run; one that was begun before goes on. `bad`: the names of those that did not
    come up. `start`: how each is carried out, unless by a process of its own.
    """
    for app in apps:
        if app.owner != InfraApp.Owner.RECONCILED:
            yield Outcome(app, "maintainers", f"{app.name} is its maintainers'. They type: abra app deploy {app.domain}")
        elif missing := sorted(bad & set(app.after)):
            yield Outcome(app, "waits", f"{app.name} comes after {', '.join(missing)}, and was not begun.")
        else:
            yield _begin(app, who, start)


def _begin(app: InfraApp, who: str, start: Start | None) -> Outcome:
    if at_work := app.upgrades.filter(state__in=[*WORKING, UpgradeState.APPROVED]).first():
        return Outcome(app, "begun", f"{app.name} {at_work.to_version}: goes on.", at_work)
    try:
        upgrade = bring_up(app, who, start=start)
    except Runs:
        return Outcome(app, "runs", f"{app.name} runs, and is left alone.")
    except Refused as error:
        return Outcome(app, "refused", f"{app.name}: {error}")
    return Outcome(app, "begun", f"{app.name} {upgrade.to_version}: begun.", upgrade)


def ended(outcome: Outcome) -> Outcome:
    """What came of one that was begun, once its upgrade has ended."""
    upgrade = outcome.upgrade
    if upgrade is None:
        return outcome
    upgrade.refresh_from_db()
    app = outcome.app
    if upgrade.state == UpgradeState.SUCCEEDED:
        data = Snapshot.objects.filter(pk=upgrade.asked.get("data")).first()
        words = f" with the data of {data.version}, {data.taken_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if data else ""
        return Outcome(app, "up", f"{app.name} {upgrade.to_version} is up{words}.", upgrade)
    return Outcome(app, "failed", f"{app.name} did not come up: {upgrade.reason}", upgrade)
