"""Actions on the server's own apps: one table for the command line, the pages and the admin.

ACTIONS are the commands that act on one app. A button is such a command with its options filled in. Commands that only report
have a page; the few with neither have a reason. A test checks that the tables and the commands agree.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.config import apply
from infra.config.apply import NotApplied
from infra.config.diff import to_apply
from infra.config.load import DeclarationError
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.releases import discovery, evaluate
from infra.releases.discovery import NotDiscovered
from infra.releases.evaluate import NotApproved
from infra.runtime import drift
from infra.runtime.drift import Refused
from infra.snapshots.snapshot import is_stateful
from infra.states import CHANGING
from infra.upgrades import disaster_recovery, enqueue, scheduler

On = Literal["app", "release", "snapshot", "server"]
SETTLED, RECONCILED = InfraApp.State.SETTLED, InfraApp.Owner.RECONCILED


@dataclass(frozen=True)
class Done:
    """The result of an action that starts no upgrade. `data` is for JSON output."""

    text: str
    data: dict[str, Any]
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()

    def __str__(self) -> str:
        return " ".join([self.text, *self.notes, *self.problems])


class NoSuchRow(Refused):
    """The named row does not exist."""


@dataclass(frozen=True)
class Action:
    """A command on one app. `act` gets the app, who asked, by what, and the `arguments`, declared as for argparse.

    It raises Refused, with what to do instead. `begins`: it starts an upgrade, which can be followed.
    """

    help: str
    act: Callable[..., Upgrade | Done]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    begins: bool = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name, how in self.arguments.items():
            parser.add_argument(name, **how)

    def run(self, app: InfraApp, who: str, by: str, given: Mapping[str, Any]) -> Upgrade | Done:
        names = [name.lstrip("-").replace("-", "_") for name in self.arguments]
        try:
            return self.act(app, who, by, **{name: given[name] for name in names})
        except NotApproved as error:
            raise Refused(str(error)) from error


@dataclass(frozen=True)
class Button:
    """`command`: what to type instead. `does`: what will happen, in a sentence or two, filled in for the row.

    `fits`: whether it makes sense for the row in its current state; pressed anyway, it is refused. `asks`: it asks for
    confirmation; `danger`: data may be lost. `act`: for commands that are not in ACTIONS.
    """

    command: str
    on: On
    label: str
    does: str
    fits: Callable[[Any], bool] = lambda row: True
    asks: bool = False
    danger: bool = False
    right: str = "infra.change_infraapp"
    act: Callable[[Any, str], Upgrade | str] | None = None

    def says(self, row: Any) -> str:
        """What the button will do to this row."""
        return self.does.format_map(_words(row))

    def typed(self, row: Any) -> str:
        """The command for this row."""
        return f"cc-ci infra {self.command.format_map(_words(row))}"

    def named(self, row: Any) -> str:
        """The label for this row."""
        return self.label.format_map(_words(row))

    def press(self, row: Any, who: str) -> Upgrade | str:
        """Press the button. Raises Refused, with what to do instead."""
        if self.act is None:
            return self._do(row, who)
        try:
            return self.act(row, who)
        except (NotDiscovered, NotApplied, DeclarationError) as error:
            raise Refused(str(error)) from error

    def _do(self, row: Any, who: str) -> Upgrade | str:
        """Run the command that one would type."""
        name, _, *given = self.command.split()
        parser = ArgumentParser(exit_on_error=False)
        ACTIONS[name].add_arguments(parser)
        words = _words(row)
        options = parser.parse_args([word.format_map(words) for word in given])
        done = ACTIONS[name].run(row if self.on == "app" else row.app, who, "button", vars(options))
        return done if isinstance(done, Upgrade) else str(done)


def _words(row: Any) -> dict[str, Any]:
    app = row if isinstance(row, InfraApp) else getattr(row, "app", None)
    last = (row.under_way() or row.last_success()) if isinstance(row, InfraApp) else None
    return {
        "app": app.name if app else "",
        "running": (app.running_version if app else "") or "what runs",
        "pinned": (app.pinned_version if app else "") or "the pinned version",
        "before": (last.from_version if last else "") or "the version before",
        "ours": (app.contested.get("ours") if app else "") or "what cc-ci had deployed",
        "version": getattr(row, "version", ""),
        "number": row.pk if isinstance(row, Snapshot) else "",
        "at": f"{row.taken_at:%Y-%m-%d %H:%M} UTC" if isinstance(row, Snapshot) else "",
    }


# --- what they do


def _upgrade(app: InfraApp, who: str, by: str, *, version: str, now: bool, dry_run: bool) -> Upgrade | Done:
    if dry_run:
        plan = enqueue.plan_of(app, now=now)
        return Done(str(plan), {"takes": str(plan.takes or ""), "plan": str(plan)})
    return enqueue.upgrade(app, version, f"{who}, by {by}", now=now)


def _restore(app: InfraApp, who: str, by: str, *, snapshot: int) -> Upgrade:
    row = app.taken.filter(pk=snapshot).first()
    if row is None:
        raise NoSuchRow(f"{app.name} has no snapshot {snapshot}. See: {evaluate.command('snapshots', app.name)}")
    return enqueue.restore(app, row, who)


def _adopt(app: InfraApp, who: str, by: str) -> Done:
    problems = drift.adopt(app, who)
    return _owned(app, f"cc-ci now manages {app} as it runs: {app.running_version}.", problems)


def _hand_over(app: InfraApp, who: str, by: str) -> Done:
    problems = drift.hand_over(app, who)
    return _owned(app, f"{app} is now managed by its maintainers; cc-ci no longer changes it.", problems)


def _owned(app: InfraApp, text: str, problems: list[str]) -> Done:
    data = {"done": True, "owner": app.owner, "running": app.running_version, "problems": problems}
    return Done(text, data, problems=problems)


def _approve(app: InfraApp, who: str, by: str, *, version: str) -> Done:
    row = evaluate.approve(app, version, who)
    return _judged(row, f"Approved {row}: the next upgrade may take it.", approved=True, lifted=row.lifted)


def _release_from_quarantine(app: InfraApp, who: str, by: str, *, version: str) -> Done:
    row = enqueue.release_from_quarantine(app, version, who)
    return _judged(row, f"Released {row} from quarantine: it may be tried again.", version=row.version)


def _judged(row: InfraRelease, text: str, **data: Any) -> Done:
    still = [f"Still blocked: {reason['text']} {reason['lift']}" for reason in row.reasons]
    return Done(text, {"done": True, **data, "still": row.reasons}, still)


_VERSION = {"version": {"metavar": "VERSION"}}

#: The commands that act on one app; `infra.management` creates its sub-commands from them.
ACTIONS: dict[str, Action] = {
    "upgrade": Action(
        "upgrade one app now, to the highest version that passes the gate, and follow it",
        _upgrade,
        {
            "version": {"nargs": "?", "default": "", "metavar": "VERSION"},
            "--now": {"action": "store_true", "help": "ignore the window and the host's load"},
            "--dry-run": {"action": "store_true", "help": "only show what would be done, and why not more"},
        },
        begins=True,
    ),
    "rollback": Action(
        "go back to the version before; reverses a running upgrade",
        lambda app, who, by, data: enqueue.roll_back(app, who, data=data),
        {"--data": {"action": "store_true", "help": "also restore the data of the snapshot taken before that upgrade"}},
        begins=True,
    ),
    "deploy": Action(
        "deploy an app that does not run: its pinned version, with the data of its newest snapshot",
        lambda app, who, by, **how: disaster_recovery.deploy(app, who, **how),
        {
            "--snapshot": {
                "type": int,
                "metavar": "SNAPSHOT",
                "help": "use another snapshot; its number is in: cc-ci infra snapshots APP",
            },
            "--fresh": {"action": "store_true", "help": "start without data"},
            "--volumes": {"choices": ["keep", "replace"], "default": "", "help": "keep or replace volumes that still exist"},
        },
        begins=True,
    ),
    "snapshot": Action(
        "stop an app, copy its data into its store, and start it again",
        lambda app, who, by: enqueue.snapshot(app, who),
        begins=True,
    ),
    "restore": Action(
        "restore a snapshot's data, with the version it was taken of",
        _restore,
        {"snapshot": {"type": int, "metavar": "SNAPSHOT", "help": "its number, from: cc-ci infra snapshots APP"}},
        begins=True,
    ),
    "adopt": Action("from now on, manage what runs, whoever deployed it", _adopt),
    "restore-ours": Action("restore what cc-ci had deployed", lambda app, who, by: enqueue.restore_ours(app, who), begins=True),
    "hand-over": Action("leave an app to its maintainers; cc-ci no longer changes it", _hand_over),
    "approve": Action("approve one version that is held", _approve, _VERSION),
    "lift": Action("release a version from quarantine", _release_from_quarantine, _VERSION),
}


def _releases(app: InfraApp, who: str) -> str:
    discovery.discover(app)
    app.refresh_from_db()
    plan = evaluate.plan_of(app)
    evaluate.record(app, plan)
    newest = f"the newest is {plan.newest}" if plan.newest else "none is newer than what runs"
    return f"{app.releases.filter(gone=False).count()} releases of {app.recipe} are known; {newest}."


def _apply(row: None, who: str) -> str:
    path = apply.place()
    changes = apply.apply(apply.read(path), path)
    done = len(to_apply(changes))
    left = [str(change) for change in changes if change.kind in ("behind", "refused")]
    return "\n".join([f"{done} changes applied." if done else "Nothing to apply.", *left])


def _nightly(row: None, who: str) -> str:
    return f"Maintenance run: {scheduler.step()}."


# --- where they make sense


def _at_rest(app: InfraApp) -> bool:
    return app.ours and app.state == SETTLED


def _runs(app: InfraApp) -> bool:
    return _at_rest(app) and bool(app.running_version)


def _may_upgrade(app: InfraApp) -> bool:
    return _runs(app) and app.rollback_failed() is None


def _is_gone(app: InfraApp) -> bool:
    return _at_rest(app) and not app.running_version


def _may_go_back(app: InfraApp) -> bool:
    at_work = app.under_way()
    if at_work:
        return at_work.state in CHANGING and not at_work.request.back
    return _at_rest(app) and app.last_success() is not None


def _has_data_before(app: InfraApp) -> bool:
    last = app.last_success()
    return _at_rest(app) and last is not None and last.snapshot_id is not None


def _adoptable(app: InfraApp) -> bool:
    if app.state == InfraApp.State.UPGRADING or not app.declared:
        return False
    return app.state == InfraApp.State.DRIFTED or app.owner != RECONCILED or app.rollback_failed() is not None


def _held(release: InfraRelease) -> bool:
    return release.app.ours and release.state == InfraRelease.State.HELD


def _may_come(release: InfraRelease) -> bool:
    return release.state == InfraRelease.State.CANDIDATE and not release.reasons and _may_upgrade(release.app)


BUTTONS: dict[str, Button] = {
    "upgrade": Button(
        "upgrade {app}",
        "app",
        "Upgrade",
        "Upgrades {app} from {running} to the highest version that passes the gate, if its window is open. If it keeps "
        "data, it is stopped while its volumes are copied. If the new version is unhealthy, it is rolled back.",
        _may_upgrade,
        asks=True,
    ),
    "upgrade_now": Button(
        "upgrade {app} --now",
        "app",
        "Upgrade now, ignoring the window",
        "Upgrades {app} from {running} to the highest version that passes the gate, at once. If it keeps data, it is "
        "stopped while its volumes are copied. If the new version is unhealthy, it is rolled back.",
        _may_upgrade,
        asks=True,
    ),
    "rollback": Button(
        "rollback {app}",
        "app",
        "Roll back to the version before",
        "Rolls {app} back to {before}. This reverses a running upgrade, and restores its snapshot if the new version "
        "has run on the data. Otherwise {running} is replaced, its data stays as it is now, and {running} is "
        "quarantined.",
        _may_go_back,
        asks=True,
    ),
    "rollback_with_data": Button(
        "rollback {app} --data",
        "app",
        "Roll back, with the data from before",
        "Rolls {app} back to {before} with the data of the snapshot that was taken then. What was written since is "
        "lost to the app, but kept in a new snapshot that is taken first. This quarantines {running}.",
        _has_data_before,
        asks=True,
        danger=True,
    ),
    "snapshot": Button(
        "snapshot {app}",
        "app",
        "Take a snapshot",
        "Stops {app}, copies its volumes into its store, verifies the copy, and starts it again.",
        lambda app: _runs(app) and is_stateful(app),
        asks=True,
    ),
    "deploy": Button(
        "deploy {app}",
        "app",
        "Deploy",
        "Deploys {pinned} of {app}, which is not running as far as cc-ci knows, with the data of its newest snapshot.",
        _is_gone,
        asks=True,
    ),
    "deploy_fresh": Button(
        "deploy {app} --fresh",
        "app",
        "Deploy without data",
        "Deploys {pinned} of {app}, which is not running as far as cc-ci knows, from scratch: without data from a snapshot.",
        _is_gone,
        asks=True,
        danger=True,
    ),
    "deploy_keep": Button(
        "deploy {app} --volumes keep",
        "app",
        "Deploy with the existing volumes",
        "Deploys {pinned} of {app}, which is not running as far as cc-ci knows, on its existing volumes.",
        _is_gone,
        asks=True,
    ),
    "deploy_replace": Button(
        "deploy {app} --volumes replace",
        "app",
        "Deploy, replacing its volumes",
        "Deploys {pinned} of {app}, which is not running as far as cc-ci knows, with the data of its newest snapshot. "
        "This replaces what is in its volumes now, which is lost.",
        _is_gone,
        asks=True,
        danger=True,
    ),
    "releases": Button(
        "releases {app}",
        "app",
        "Look for releases",
        "Reads the tags and notes of the recipe of {app} now. Changes nothing that runs.",
        lambda app: app.declared,
        act=_releases,
    ),
    "adopt": Button(
        "adopt {app}",
        "app",
        "Adopt what runs",
        "From now on cc-ci manages {app} as it runs, whoever deployed it: its version becomes the pin in infra.yml, "
        "and cc-ci upgrades it.",
        _adoptable,
        asks=True,
    ),
    "restore_ours": Button(
        "restore-ours {app}",
        "app",
        "Restore what cc-ci had deployed",
        "Restores {app} to {ours}, as cc-ci had deployed it. Changes made outside cc-ci are undone. A snapshot is taken first.",
        lambda app: app.ours and app.state == InfraApp.State.DRIFTED,
        asks=True,
        danger=True,
    ),
    "hand_over": Button(
        "hand-over {app}",
        "app",
        "Hand over to its maintainers",
        "{app} is managed by its maintainers from now on, and infra.yml says so. cc-ci no longer upgrades it, takes no "
        "snapshots of it, and does not roll it back; it only shows what is newer.",
        lambda app: app.owner == RECONCILED and app.state != InfraApp.State.UPGRADING and app.declared,
        asks=True,
        danger=True,
    ),
    "approve": Button(
        "approve {app} {version}",
        "release",
        "Approve this version",
        "Lets the next upgrade of {app} take {version}, and no other held version.",
        _held,
        right="infra.change_infrarelease",
    ),
    "upgrade_to": Button(
        "upgrade {app} {version} --now",
        "release",
        "Upgrade to this version",
        "Upgrades {app} from {running} to {version} at once, if it passes the gate. If it keeps data, it is stopped "
        "while its volumes are copied. If the new version is unhealthy, it is rolled back.",
        _may_come,
        asks=True,
    ),
    "lift": Button(
        "lift {app} {version}",
        "release",
        "Release from quarantine",
        "Lets {version} of {app} be tried again, as early as the next maintenance run.",
        lambda release: release.state == InfraRelease.State.QUARANTINED,
    ),
    "restore": Button(
        "restore {app} {number}",
        "snapshot",
        "Restore this snapshot",
        "Restores {app} to {version} with its data of {at}. What was written since is lost to the app, but kept in a "
        "new snapshot that is taken first.",
        lambda snapshot: _at_rest(snapshot.app),
        asks=True,
        danger=True,
    ),
    "deploy_from": Button(
        "deploy {app} --snapshot {number}",
        "snapshot",
        "Deploy with this snapshot",
        "Deploys {pinned} of {app}, which is not running as far as cc-ci knows, with its data of {at}.",
        lambda snapshot: _is_gone(snapshot.app),
        asks=True,
    ),
    "apply": Button(
        "apply",
        "server",
        "Apply infra.yml",
        "Loads what infra.yml declares into the database. Deploys nothing, and never lowers a version.",
        right="infra.change_infrafile",
        act=_apply,
    ),
    "nightly": Button(
        "nightly",
        "server",
        "Start the next upgrade now",
        "Starts the next upgrade of the plan, if one may start now. A worker does the same every minute.",
        asks=True,
        act=_nightly,
    ),
}

#: Commands that only report, and the URL name of the page that shows the same.
PAGES: dict[str, str] = {
    "status": "infra",
    "releases": "infra",
    "snapshots": "infra",
    "diff": "infra-file",
    "check": "infra-file",
    "export": "infra-export",
    "upgrade --dry-run": "infra-night",
    "nightly --dry-run": "infra-night",
}

#: Commands without a counterpart, and why.
WITHOUT: dict[str, str] = {
    "execute": "Only workers run it: it is the process that executes a started upgrade.",
    "carry-out": "The earlier name of execute.",
    "apply --restore": "It is for a lost host, where there is no database yet and nobody who could log in.",
}


def that_fit(on: On, row: Any, user: Any) -> list[tuple[str, Button]]:
    """The buttons that fit a row in its current state, for those with the permission."""
    return [(name, one) for name, one in BUTTONS.items() if one.on == on and user.has_perm(one.right) and one.fits(row)]
