"""Every command of `cc-ci infra` and its counterpart for those who click: one table, for the pages and for the admin.

What changes something is a button; what only tells is a page; what can have neither says why. A test holds the table and the
commands equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from infra import applying, looking, nightly, ownership, rebuilding, releases, wanting
from infra.applying import NotApplied
from infra.declaration import DeclarationError
from infra.looking import NotApproved
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.ownership import Refused
from infra.plan import to_apply
from infra.releases import NotDiscovered
from infra.snapshots import is_stateful
from infra.states import CHANGING
from infra.status import last_success, rollback_failed, under_way

On = Literal["app", "release", "snapshot", "server"]
SETTLED, RECONCILED = InfraApp.State.SETTLED, InfraApp.Owner.RECONCILED


@dataclass(frozen=True)
class Button:
    """`command`: what one would type instead. `does`: what will happen, a sentence or two, with the row's words filled in.

    `act` does it, and gives the upgrade that has begun, or words. `fits`: whether it makes sense for the row as it stands; when
    it is pressed all the same, `act` refuses. `asks`: it is done only after a second look; `danger`: something may be lost by it.
    """

    command: str
    on: On
    label: str
    does: str
    act: Callable[[Any, str], Upgrade | str]
    fits: Callable[[Any], bool] = lambda row: True
    asks: bool = False
    danger: bool = False
    right: str = "infra.change_infraapp"

    def says(self, row: Any) -> str:
        """What it will do to this row."""
        return self.does.format_map(_words(row))

    def typed(self, row: Any) -> str:
        """The command for this row."""
        return f"cc-ci infra {self.command.format_map(_words(row))}"

    def named(self, row: Any) -> str:
        """Its label, for this row."""
        return self.label.format_map(_words(row))

    def press(self, row: Any, who: str) -> Upgrade | str:
        """Do it. Raises Refused, with what to do instead."""
        try:
            return self.act(row, who)
        except (NotApproved, NotDiscovered, NotApplied, DeclarationError) as error:
            raise Refused(str(error)) from error


def _words(row: Any) -> dict[str, Any]:
    app = row if isinstance(row, InfraApp) else getattr(row, "app", None)
    last = (under_way(row) or last_success(row)) if isinstance(row, InfraApp) else None
    return {
        "app": app.name if app else "",
        "running": (app.running_version if app else "") or "what runs",
        "pinned": (app.pinned_version if app else "") or "the pinned version",
        "before": (last.from_version if last else "") or "the version before",
        "ours": (app.contested.get("ours") if app else "") or "what cc-ci had left there",
        "version": getattr(row, "version", ""),
        "number": row.pk if isinstance(row, Snapshot) else "",
        "at": f"{row.taken_at:%Y-%m-%d %H:%M} UTC" if isinstance(row, Snapshot) else "",
    }


# --- what they do


def _upgrade(app: InfraApp, who: str) -> Upgrade:
    return wanting.upgrade(app, "", f"{who}, by button")


def _upgrade_now(app: InfraApp, who: str) -> Upgrade:
    return wanting.upgrade(app, "", f"{who}, by button", now=True)


def _upgrade_to(release: InfraRelease, who: str) -> Upgrade:
    return wanting.upgrade(release.app, release.version, f"{who}, by button", now=True)


def _rollback(app: InfraApp, who: str) -> Upgrade:
    return wanting.roll_back(app, who)


def _rollback_with_data(app: InfraApp, who: str) -> Upgrade:
    return wanting.roll_back(app, who, data=True)


def _snapshot(app: InfraApp, who: str) -> Upgrade:
    return wanting.snapshot(app, who)


def _deploy(app: InfraApp, who: str) -> Upgrade:
    return rebuilding.deploy(app, who)


def _deploy_fresh(app: InfraApp, who: str) -> Upgrade:
    return rebuilding.deploy(app, who, fresh=True)


def _deploy_keep(app: InfraApp, who: str) -> Upgrade:
    return rebuilding.deploy(app, who, volumes="keep")


def _deploy_replace(app: InfraApp, who: str) -> Upgrade:
    return rebuilding.deploy(app, who, volumes="replace")


def _deploy_from(snapshot: Snapshot, who: str) -> Upgrade:
    return rebuilding.deploy(snapshot.app, who, snapshot=snapshot.pk)


def _restore(snapshot: Snapshot, who: str) -> Upgrade:
    return wanting.restore(snapshot.app, snapshot, who)


def _restore_ours(app: InfraApp, who: str) -> Upgrade:
    return wanting.restore_ours(app, who)


def _adopt(app: InfraApp, who: str) -> str:
    return " ".join([f"{app} is cc-ci's.", *ownership.adopt(app, who)])


def _hand_over(app: InfraApp, who: str) -> str:
    return " ".join([f"{app} is handed over.", *ownership.hand_over(app, who)])


def _approve(release: InfraRelease, who: str) -> str:
    row = looking.approve(release.app, release.version, who)
    still = [f"Still: {reason['text']} {reason['lift']}" for reason in row.reasons]
    return " ".join([f"{row} is approved.", *still])


def _lift(release: InfraRelease, who: str) -> str:
    return f"{wanting.lift(release.app, release.version, who)} may be tried again."


def _releases(app: InfraApp, who: str) -> str:
    releases.discover(app)
    app.refresh_from_db()
    plan = looking.look(app)
    looking.record(app, plan)
    newest = f"the newest is {plan.newest}" if plan.newest else "none is newer than what runs"
    return f"{app.releases.filter(gone=False).count()} releases of {app.recipe} are known; {newest}."


def _apply(row: None, who: str) -> str:
    path = applying.place()
    changes = applying.apply(applying.read(path), path)
    done = len(to_apply(changes))
    left = [str(change) for change in changes if change.kind in ("behind", "refused")]
    return "\n".join([f"{done} changes applied." if done else "Nothing to apply.", *left])


def _nightly(row: None, who: str) -> str:
    return f"One step of the night: {nightly.step()}."


# --- where they make sense


def _at_rest(app: InfraApp) -> bool:
    return app.ours and app.state == SETTLED


def _runs(app: InfraApp) -> bool:
    return _at_rest(app) and bool(app.running_version)


def _may_upgrade(app: InfraApp) -> bool:
    return _runs(app) and rollback_failed(app) is None


def _is_gone(app: InfraApp) -> bool:
    return _at_rest(app) and not app.running_version


def _may_go_back(app: InfraApp) -> bool:
    at_work = under_way(app)
    if at_work:
        return at_work.state in CHANGING and not at_work.asked.get("back")
    return _at_rest(app) and last_success(app) is not None


def _has_data_before(app: InfraApp) -> bool:
    last = last_success(app)
    return _at_rest(app) and last is not None and last.snapshot_id is not None


def _adoptable(app: InfraApp) -> bool:
    if app.state == InfraApp.State.UPGRADING or not app.declared:
        return False
    return app.state == InfraApp.State.CONTESTED or app.owner != RECONCILED or rollback_failed(app) is not None


def _held(release: InfraRelease) -> bool:
    return release.app.ours and release.state == InfraRelease.State.HELD


def _may_come(release: InfraRelease) -> bool:
    return release.state == InfraRelease.State.CANDIDATE and not release.reasons and _may_upgrade(release.app)


BUTTONS: dict[str, Button] = {
    "upgrade": Button(
        "upgrade {app}",
        "app",
        "Upgrade",
        "Upgrades {app} from {running} to the highest version that the gate lets through, if its window is open. If it "
        "keeps data, it is stopped while its volumes are copied. What does not become well is rolled back.",
        _upgrade,
        _may_upgrade,
        asks=True,
    ),
    "upgrade_now": Button(
        "upgrade {app} --now",
        "app",
        "Upgrade now, window or not",
        "Upgrades {app} from {running} to the highest version that the gate lets through, at once. If it keeps data, it "
        "is stopped while its volumes are copied. What does not become well is rolled back.",
        _upgrade_now,
        _may_upgrade,
        asks=True,
    ),
    "rollback": Button(
        "rollback {app}",
        "app",
        "Roll back to the version before",
        "Puts {app} back to {before}. An upgrade that is under way turns round, and puts its snapshot back where the new "
        "version has run on the data. Otherwise {running} goes, its data stays as it is now, and {running} is "
        "quarantined.",
        _rollback,
        _may_go_back,
        asks=True,
    ),
    "rollback_with_data": Button(
        "rollback {app} --data",
        "app",
        "Roll back, with the data of then",
        "Puts {app} back to {before} with the data of the snapshot that was taken then. What was written since is gone "
        "from the app; a new snapshot is taken first, which has it. {running} is quarantined.",
        _rollback_with_data,
        _has_data_before,
        asks=True,
        danger=True,
    ),
    "snapshot": Button(
        "snapshot {app}",
        "app",
        "Take a snapshot",
        "Stops {app}, copies its volumes into its store, proves the copy, and brings it back as it was.",
        _snapshot,
        lambda app: _runs(app) and is_stateful(app),
        asks=True,
    ),
    "deploy": Button(
        "deploy {app}",
        "app",
        "Bring it up",
        "Brings up {pinned} of {app}, which does not run as far as is known, with the data of its newest snapshot.",
        _deploy,
        _is_gone,
        asks=True,
    ),
    "deploy_fresh": Button(
        "deploy {app} --fresh",
        "app",
        "Bring it up with no data",
        "Brings up {pinned} of {app}, which does not run as far as is known, as new: with no data from a snapshot.",
        _deploy_fresh,
        _is_gone,
        asks=True,
        danger=True,
    ),
    "deploy_keep": Button(
        "deploy {app} --volumes keep",
        "app",
        "Bring it up with the volumes that are there",
        "Brings up {pinned} of {app}, which does not run as far as is known, on the volumes that are still there.",
        _deploy_keep,
        _is_gone,
        asks=True,
    ),
    "deploy_replace": Button(
        "deploy {app} --volumes replace",
        "app",
        "Bring it up, its volumes replaced",
        "Brings up {pinned} of {app}, which does not run as far as is known, with the data of its newest snapshot in the "
        "place of what is in its volumes. What is in them now is lost.",
        _deploy_replace,
        _is_gone,
        asks=True,
        danger=True,
    ),
    "releases": Button(
        "releases {app}",
        "app",
        "Look for releases",
        "Reads the tags and notes of the recipe of {app} now, and changes nothing of what runs.",
        _releases,
        lambda app: app.declared,
    ),
    "adopt": Button(
        "adopt {app}",
        "app",
        "Adopt: what runs is cc-ci's",
        "What runs of {app} is cc-ci's from now on, whoever put it there: it becomes the pin in infra.yml, and cc-ci "
        "upgrades it.",
        _adopt,
        _adoptable,
        asks=True,
    ),
    "restore_ours": Button(
        "restore-ours {app}",
        "app",
        "Put back what cc-ci had left there",
        "Puts {app} back to {ours}, as cc-ci had left it. What somebody else made of it is undone. A snapshot is taken first.",
        _restore_ours,
        lambda app: app.ours and app.state == InfraApp.State.CONTESTED,
        asks=True,
        danger=True,
    ),
    "hand_over": Button(
        "hand-over {app}",
        "app",
        "Hand over to its maintainers",
        "{app} is its maintainers' from now on, and infra.yml says so. cc-ci upgrades it no more, takes no snapshots of "
        "it, and does not roll it back; it only shows what is newer.",
        _hand_over,
        lambda app: app.owner == RECONCILED and app.state != InfraApp.State.UPGRADING and app.declared,
        asks=True,
        danger=True,
    ),
    "approve": Button(
        "approve {app} {version}",
        "release",
        "Approve this version",
        "Lets {version} of {app} come with the next upgrade, and no other version.",
        _approve,
        _held,
        right="infra.change_infrarelease",
    ),
    "upgrade_to": Button(
        "upgrade {app} {version} --now",
        "release",
        "Upgrade to this version",
        "Upgrades {app} from {running} to {version} at once, if the gate lets it through. If it keeps data, it is "
        "stopped while its volumes are copied. What does not become well is rolled back.",
        _upgrade_to,
        _may_come,
        asks=True,
    ),
    "lift": Button(
        "lift {app} {version}",
        "release",
        "Lift its quarantine",
        "{version} of {app} may be tried again, by the next night already.",
        _lift,
        lambda release: release.state == InfraRelease.State.QUARANTINED,
    ),
    "restore": Button(
        "restore {app} {number}",
        "snapshot",
        "Restore it",
        "Puts {app} back to {version} with its data of {at}. What was written since is gone from the app; a new snapshot "
        "is taken first, which has it.",
        _restore,
        lambda snapshot: _at_rest(snapshot.app),
        asks=True,
        danger=True,
    ),
    "deploy_from": Button(
        "deploy {app} --snapshot {number}",
        "snapshot",
        "Bring it up with this one",
        "Brings up {pinned} of {app}, which does not run as far as is known, with its data of {at}.",
        _deploy_from,
        lambda snapshot: _is_gone(snapshot.app),
        asks=True,
    ),
    "apply": Button(
        "apply",
        "server",
        "Apply infra.yml",
        "Takes over what infra.yml says. It deploys nothing, and never lowers a version.",
        _apply,
        right="infra.change_infrafile",
    ),
    "nightly": Button(
        "nightly",
        "server",
        "Do the night's next step now",
        "Begins the next upgrade of the plan, if there is one that may come now. A worker does the same each minute.",
        _nightly,
        asks=True,
    ),
}

#: Commands that tell, and the name of the page that shows the same.
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
    "carry-out": "The workers type it: it is the process in which an upgrade that has begun is carried out.",
    "apply --restore": "It is for a machine that was lost: there is no database yet, and nobody who could log in.",
}


def that_fit(on: On, row: Any, user: Any) -> list[tuple[str, Button]]:
    """The buttons for a row as it stands, for those who may press them."""
    return [(name, one) for name, one in BUTTONS.items() if one.on == on and user.has_perm(one.right) and one.fits(row)]
