"""The sub-commands of `cc-ci infra` that change what runs, and those that show it."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.utils import timezone

from controlplane.cli import NO, OURS, Exit
from infra import carrying, nightly, ownership, rebuilding, snapshots, wanting
from infra.models import InfraApp, Upgrade
from infra.ownership import Refused
from infra.rebuilding import Outcome
from infra.states import UpgradeState

_POLL_SECONDS = 0.1
_RESUME_SECONDS = 10.0
#: So many apps are brought up at once.
_AT_ONCE = 4
_SHOWN = ("sample",)


def add_actions(add: Callable[..., Any]) -> None:
    """The parsers. `add` makes one with a name and a help text."""

    def with_app(name: str, text: str) -> Any:
        action = add(name, text)
        action.add_argument("app", metavar="APP")
        return action

    action = with_app("upgrade", "upgrade one app now, to the highest version that the gate lets through, and follow it")
    action.add_argument("version", nargs="?", default="", metavar="VERSION")
    action.add_argument("--now", action="store_true", help="outside its window and on a busy machine as well")
    action.add_argument("--dry-run", action="store_true", help="only say what would be done, and why not more")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    action = with_app("rollback", "back to the version before; an upgrade that is under way turns round")
    action.add_argument("--data", action="store_true", help="with the data of the snapshot taken before that upgrade")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    action = with_app("deploy", "bring up an app that does not run: its pinned version, with the data of its newest snapshot")
    action.add_argument("--snapshot", type=int, metavar="SNAPSHOT", help="another one, from: cc-ci infra snapshots APP")
    action.add_argument("--fresh", action="store_true", help="with no data")
    action.add_argument("--volumes", choices=["keep", "replace"], default="", help="what to do with volumes that are still there")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    action = with_app("snapshot", "stop an app, copy its data into its store, and bring it back as it was")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    with_app("snapshots", "the snapshots of an app, and why each is kept")
    action = with_app("restore", "the data of a snapshot, with the version that it was taken of")
    action.add_argument("snapshot", type=int, metavar="SNAPSHOT", help="its number, from: cc-ci infra snapshots APP")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    with_app("adopt", "what runs is cc-ci's from now on, whoever put it there")
    action = with_app("restore-ours", "put back what cc-ci had left there")
    action.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    with_app("hand-over", "to its maintainers: cc-ci changes nothing any more")
    action = with_app("lift", "let a quarantined version be tried again")
    action.add_argument("version", metavar="VERSION")
    action = add("nightly", "one step of the night: begin the next upgrade, if it is time for one")
    action.add_argument("--dry-run", action="store_true", help="print the whole plan with its reasons; begin nothing")
    action = add("carry-out", "carry out an upgrade that was begun, here and now (the workers type this)")
    action.add_argument("upgrade", type=int, metavar="UPGRADE", help="its number")


class Operating(BaseCommand):
    """What `infra.management.commands.infra` inherits."""

    def _say(self, options: dict[str, Any], data: Any, lines: list[str], errors: list[str] | None = None) -> None:
        raise NotImplementedError

    def _named(self, options: dict[str, Any]) -> InfraApp:
        row = InfraApp.objects.filter(name=options["app"]).first()
        if row is None:
            known = ", ".join(InfraApp.objects.values_list("name", flat=True))
            raise CommandError(f"there is no app {options['app']}. {f'Known: {known}' if known else 'None is declared yet.'}")
        return row

    def _refuse(self, options: dict[str, Any], error: Refused) -> Exit:
        self._say(options, {"done": False, "error": str(error)}, [], [str(error)])
        return Exit(NO)

    def _upgrade(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        if options["dry_run"]:
            plan = wanting.plan_of(app, now=options["now"])
            self._say(options, {"takes": str(plan.takes or ""), "plan": str(plan)}, [str(plan)])
            return
        self._begin(options, lambda who: wanting.upgrade(app, options["version"], f"{who}, by command", now=options["now"]))

    def _rollback(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        self._begin(options, lambda who: wanting.roll_back(app, who, data=options["data"]))

    def _restore(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        snapshot = app.taken.filter(pk=options["snapshot"]).first()
        if snapshot is None:
            raise CommandError(f"{app.name} has no snapshot {options['snapshot']}. See: cc-ci infra snapshots {app.name}")
        self._begin(options, lambda who: wanting.restore(app, snapshot, who))

    def _snapshot(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        self._begin(options, lambda who: wanting.snapshot(app, who))

    def _deploy(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        how = {name: options[name] for name in ("snapshot", "fresh", "volumes")}
        self._begin(options, lambda who: rebuilding.deploy(app, who, **how))

    def _rebuild(self, options: dict[str, Any]) -> list[Outcome]:
        """Bring up what does not run, level by level: what came of each app."""
        apps = list(InfraApp.objects.filter(declared=True))
        if problems := rebuilding.recover(app for app in apps if app.ours):
            self._say(options, {"errors": problems}, [], [*problems, "Nothing was begun."])
            raise Exit(OURS)
        outcomes: list[Outcome] = []
        quiet = options["json"]
        with _private(), ThreadPoolExecutor(_AT_ONCE) as pool:  # a process for each would cost more time than Docker takes
            for level in rebuilding.levels(apps):
                bad = {outcome.app.name for outcome in outcomes if not outcome.good}
                begun = list(rebuilding.begin_level(level, getpass.getuser(), bad, lambda row: pool.submit(_carry, row.pk)))
                for outcome in begun:
                    if outcome.upgrade:
                        self._follow(outcome.upgrade, quiet=quiet, name=outcome.app.name)
                    outcomes.append(rebuilding.ended(outcome))
                    if not quiet:
                        self.stdout.write(outcomes[-1].text)
        return outcomes

    def _restore_ours(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        self._begin(options, lambda who: wanting.restore_ours(app, who))

    def _begin(self, options: dict[str, Any], begin: Callable[[str], Upgrade]) -> None:
        """Begin it and follow it to its end: 0 when it did what was asked, 1 when not, 2 when the way back failed."""
        asked_back = options["action"] == "rollback"
        try:
            upgrade = begin(getpass.getuser())
        except Refused as error:
            raise self._refuse(options, error) from error
        if options["no_wait"]:
            self._say(options, _upgrade(upgrade), [f"Begun: {upgrade} (number {upgrade.pk}). {upgrade.get_absolute_url()}"])
            return
        self._follow(upgrade, quiet=options["json"])
        lines = [f"{upgrade}: {upgrade.get_state_display()}.{f' {upgrade.reason}' if upgrade.reason else ''}"]
        self._say(options, _upgrade(upgrade), lines)
        if upgrade.state == UpgradeState.ROLLBACK_FAILED:
            raise Exit(OURS)
        wanted = upgrade.state == UpgradeState.SUCCEEDED or (asked_back and upgrade.state == UpgradeState.ROLLED_BACK)
        if not wanted:
            raise Exit(NO)

    def _follow(self, upgrade: Upgrade, quiet: bool, name: str = "") -> None:
        """Print its trail until it ends. Whoever interrupts this ends the looking, not the upgrade."""
        seen, looked = 0, time.monotonic()
        while True:
            if time.monotonic() - looked > _RESUME_SECONDS:  # on a machine that was just set up, nobody else may look after it
                looked = time.monotonic()
                carrying.resume()
            upgrade.refresh_from_db()
            final = upgrade.final
            for event in upgrade.events.filter(pk__gt=seen).exclude(kind__in=_SHOWN):
                seen = event.pk
                if not quiet:
                    at: datetime = timezone.localtime(event.at)
                    self.stdout.write(f"{at:%H:%M:%S} {name} {event.kind}: {event.text}".replace("  ", " ").rstrip(": "))
            if final:
                return
            time.sleep(_POLL_SECONDS)

    def _snapshots(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        reasons = snapshots.kept(app)
        rows = list(app.taken.all())
        data = [
            {
                "id": row.pk,
                "version": row.version,
                "taken_at": row.taken_at,
                "bytes": row.bytes,
                "store": row.store,
                "location": row.location,
                "proved": row.proved,
                "kept_because": reasons.get(row.pk, ""),
            }
            for row in rows
        ]
        lines = [
            f"{row.pk}  {row.version}  {row.taken_at:%Y-%m-%d %H:%M} UTC  {row.bytes} bytes in {row.store}: {row.location}"
            f"{'' if row.proved else ', NOT PROVED'}; {reasons.get(row.pk) or 'goes with the next upgrade'}"
            for row in rows
        ]
        self._say(options, data, lines or [f"{app.name} has no snapshot."])

    def _adopt(self, options: dict[str, Any]) -> None:
        self._own(options, ownership.adopt, "is cc-ci's, as it runs")

    def _hand_over(self, options: dict[str, Any]) -> None:
        self._own(options, ownership.hand_over, "is its maintainers', and cc-ci changes nothing any more")

    def _own(self, options: dict[str, Any], act: Callable[[InfraApp, str], list[str]], words: str) -> None:
        app = self._named(options)
        try:
            problems = act(app, getpass.getuser())
        except Refused as error:
            raise self._refuse(options, error) from error
        said = f"{app.name} {words}: {app.running_version or 'nothing with a version'}."
        data = {"done": True, "owner": app.owner, "running": app.running_version, "problems": problems}
        self._say(options, data, [said], problems)

    def _lift(self, options: dict[str, Any]) -> None:
        app = self._named(options)
        try:
            row = wanting.lift(app, options["version"], getpass.getuser())
        except Refused as error:
            raise self._refuse(options, error) from error
        rest = [f"  Still: {reason['text']} {reason['lift']}" for reason in row.reasons]
        data = {"done": True, "version": row.version, "still": row.reasons}
        self._say(options, data, [f"{app.name} {row.version} may be tried again.", *rest])

    def _nightly(self, options: dict[str, Any]) -> None:
        if not options["dry_run"]:
            word = nightly.step()
            self._say(options, {"did": word}, [word])
            return
        plan = nightly.whole_plan()
        data = [
            {
                "app": item.app.name,
                "takes": str(item.plan.takes or "") if item.takes else "",
                "waits": item.waits,
                "plan": str(item.plan),
            }
            for item in plan
        ]
        self._say(options, data, [str(item) for item in plan] or ["No app is declared."])

    def _carry_out(self, options: dict[str, Any]) -> None:
        upgrade = Upgrade.objects.select_related("app").filter(pk=options["upgrade"]).first()
        if upgrade is None:
            raise CommandError(f"there is no upgrade {options['upgrade']}")
        with _private():
            word = carrying.carry_out(upgrade)
        self._say(options, {"state": word}, [word])


@contextmanager
def _private() -> Iterator[None]:
    """What is written meanwhile is its owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:  # a test runs this within a process that goes on
        os.umask(before)


def _carry(number: int) -> None:
    """In a thread, with a database connection of its own."""
    try:
        carrying.carry_out(Upgrade.objects.select_related("app").get(pk=number))
    finally:
        connection.close()


def _upgrade(upgrade: Upgrade) -> dict[str, Any]:
    return {
        "id": upgrade.pk,
        "app": upgrade.app.name,
        "from": upgrade.from_version,
        "to": upgrade.to_version,
        "state": upgrade.state,
        "reason": upgrade.reason,
        "page": upgrade.get_absolute_url(),
    }
