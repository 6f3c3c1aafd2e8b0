"""`cc-ci infra …`: the server's own apps: what is declared and what runs, and what holds newer versions."""

from __future__ import annotations

import getpass
import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.utils import timezone

from controlplane.cli import NO, OURS, Exit
from infra import doctor
from infra.config import apply
from infra.config.apply import NotApplied
from infra.config.diff import APPLIED, Change, to_apply
from infra.config.load import Declaration, DeclarationError, dump
from infra.models import InfraApp, Upgrade
from infra.releases import discovery
from infra.releases.evaluate import plan_of, record
from infra.runtime.drift import Refused
from infra.snapshots import snapshot as snapshots
from infra.states import UpgradeState
from infra.upgrades import disaster_recovery, launcher, scheduler
from infra.upgrades.disaster_recovery import Outcome
from infra.web.actions import ACTIONS, NoSuchRow
from infra.web.status import describe, in_words

_POLL_SECONDS = 0.1
_RESUME_SECONDS = 10.0
#: How many apps are deployed at once.
_AT_ONCE = 4
_SHOWN = ("sample",)
#: What is told of a release.
_RELEASE = ("version", "state", "annotated", "tagged_at", "notes", "commit", "reasons", "approved_by")


class Command(BaseCommand):
    help = "Compare, apply, show, upgrade and restore the server's own apps (infra.yml)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        def add(name: str, text: str, *, file: bool = False, app: bool | None = None, alias: str = "") -> ArgumentParser:
            action: ArgumentParser = actions.add_parser(name, help=text, aliases=[alias] if alias else [])
            action.set_defaults(does=name)
            action.add_argument("--json", action="store_true", help="print JSON")
            if file:
                action.add_argument("--file", type=Path, metavar="PATH", help="infra.yml, if not the one applied last")
            if app is not None:
                action.add_argument("app", metavar="APP", nargs=None if app else "?", help=None if app else "only this app")
            return action

        add("diff", "compare infra.yml with the database and with what runs; exit code 1 if they differ", file=True)
        action = add(
            "apply", "load what infra.yml declares into the database; never lowers a version, deploys nothing", file=True
        )
        action.add_argument(
            "--restore",
            action="store_true",
            help="then deploy every app that does not run, in order, with the data of its newest snapshot",
        )
        add("export", "print the database as an infra.yml")
        add("check", "check that infra.yml is valid, and its secrets and stores are accessible", file=True)
        add("status", "show what runs, what is newer, what is held, why, and the remedy", app=False)
        add("releases", "look for releases now, and list them", app=False)
        for name, one in ACTIONS.items():
            action = add(name, one.help, app=True)
            one.add_arguments(action)
            if one.begins:
                action.add_argument("--no-wait", action="store_true", help="do not follow the upgrade to its end")
        add("snapshots", "list the snapshots of an app, and why each is kept", app=True)
        action = add("nightly", "run one step of the maintenance run: start the next upgrade, if one is due")
        action.add_argument("--dry-run", action="store_true", help="print the whole plan with its reasons; start nothing")
        action = add("execute", "execute a started upgrade, here and now (used by workers)", alias="carry-out")
        action.add_argument("upgrade", type=int, metavar="UPGRADE", help="number of the upgrade")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            act = self._act if options["does"] in ACTIONS else getattr(self, f"_{options['does']}")
            act(options)
        except DeclarationError as error:
            self._say(options, {"errors": [asdict(problem) for problem in error.problems]}, [], [str(error)])
            raise Exit(NO) from error
        except NotApplied as error:
            raise CommandError(str(error)) from error

    def _say(self, options: dict[str, Any], data: Any, lines: list[str], errors: list[str] | None = None) -> None:
        """Print `data` as JSON, or the lines; errors go to stderr."""
        if options["json"]:
            self.stdout.write(json.dumps(data, indent=2, default=str))
            return
        for line in lines:
            self.stdout.write(line)
        for line in errors or []:
            self.stderr.write(line)

    def _diff(self, options: dict[str, Any]) -> None:
        changes = apply.differences(_declared(options))
        self._say(options, [asdict(change) for change in changes], _lines(changes) or ["No differences."])
        if changes:
            raise Exit(NO)

    def _apply(self, options: dict[str, Any]) -> None:
        path = options["file"] or apply.place()
        changes = apply.apply(apply.read(path), path)
        done = len(to_apply(changes))
        words = f"{done} changes applied." if done else "Nothing to apply."
        data: Any = [asdict(change) | {"applied": change.kind in APPLIED} for change in changes]
        good = not any(change.kind in ("behind", "refused") for change in changes)
        if not options["restore"]:
            self._say(options, data, [*_lines(changes), words])
        else:
            if not options["json"]:
                self._say(options, data, [words])
            outcomes = self._rebuild(options)
            rows = [{"app": one.app.name, "word": one.word, "text": one.text} for one in outcomes]
            self._say(options, {"changes": data, "apps": rows}, [])
            good = all(one.good for one in outcomes)
        if not good:
            raise Exit(NO)

    def _export(self, options: dict[str, Any]) -> None:
        document = apply.export()
        self._say(options, document.model_dump(mode="json"), [dump(document).rstrip("\n")])

    def _check(self, options: dict[str, Any]) -> None:
        findings = list(doctor.examine(options["file"] or apply.place()))
        lines = [f"{f.level}: {f.text}{f'  → {f.fix}' if f.fix else ''}" for f in findings]
        self._say(options, [asdict(finding) for finding in findings], lines)
        if any(finding.level == "error" for finding in findings):
            raise Exit(NO)

    def _status(self, options: dict[str, Any]) -> None:
        apps = [describe(app) for app in _apps(options)]
        lines = [line for app in apps for line in in_words(app)]
        self._say(options, apps, lines or ["No app yet. Write infra.yml, then: cc-ci infra apply --file infra.yml"])

    def _releases(self, options: dict[str, Any]) -> None:
        apps, failed, data, lines = _apps(options), [], [], []
        for app in apps:
            try:
                discovery.discover(app)
                record(app, plan_of(app))
            except discovery.NotDiscovered as error:
                failed.append(str(error))
            rows = list(app.releases.filter(gone=False).values(*_RELEASE))
            data.append(
                {
                    "app": app.name,
                    "error": app.discovery_error,
                    "releases": rows,
                    "unreadable": app.unreadable,
                }
            )
            lines.append(
                f"{app.name}: {len(rows)} releases of {app.recipe}, running {app.running_version or 'an unknown version'}"
            )
            lines += [f"  {_line(row)}" for row in rows]
            lines += [f"  {item['tag']}: unusable. {item['reason']}" for item in app.unreadable]
        self._say(options, data, lines, failed)
        if failed:
            raise Exit(OURS)

    def _act(self, options: dict[str, Any]) -> None:
        """Run one of ACTIONS, and follow an upgrade that it starts to its end. Exit code 1 if it did not succeed, 2 if the
        rollback failed.
        """
        app, action = named(options["app"]), ACTIONS[options["action"]]
        try:
            done = action.run(app, getpass.getuser(), "command", options)
        except NoSuchRow as error:
            raise CommandError(str(error)) from error
        except Refused as error:
            self._say(options, {"done": False, "error": str(error)}, [], [str(error)])
            raise Exit(NO) from error
        if isinstance(done, Upgrade):
            self._begun(done, options)
        else:
            self._say(options, done.data, [done.text, *(f"  {note}" for note in done.notes)], list(done.problems))

    def _rebuild(self, options: dict[str, Any]) -> list[Outcome]:
        """Deploy what does not run, level by level. Returns the outcome for each app."""
        apps = list(InfraApp.objects.filter(declared=True))
        if problems := disaster_recovery.recover(app for app in apps if app.ours):
            self._say(options, {"errors": problems}, [], [*problems, "Nothing was started."])
            raise Exit(OURS)
        outcomes: list[Outcome] = []
        quiet = options["json"]
        with _private(), ThreadPoolExecutor(_AT_ONCE) as pool:  # threads: a process each would cost more time than Docker
            for level in disaster_recovery.levels(apps):
                bad = {outcome.app.name for outcome in outcomes if not outcome.good}
                begun = list(
                    disaster_recovery.begin_level(level, getpass.getuser(), bad, lambda row: pool.submit(_execute, row.pk))
                )
                for outcome in begun:
                    if outcome.upgrade:
                        self._follow(outcome.upgrade, quiet=quiet, name=outcome.app.name)
                    outcomes.append(disaster_recovery.ended(outcome))
                    if not quiet:
                        self.stdout.write(outcomes[-1].text)
        return outcomes

    def _begun(self, upgrade: Upgrade, options: dict[str, Any]) -> None:
        asked_back = options["action"] == "rollback"
        if options["no_wait"]:
            self._say(options, _upgrade(upgrade), [f"Started upgrade #{upgrade.pk} of {upgrade}. {upgrade.get_absolute_url()}"])
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
        """Print the upgrade's trail until it ends. Interrupting this stops the display, not the upgrade."""
        seen, looked = 0, time.monotonic()
        while True:
            if time.monotonic() - looked > _RESUME_SECONDS:  # on a new host no worker may be running yet
                looked = time.monotonic()
                launcher.resume()
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
        app = named(options["app"])
        reasons = snapshots.kept(app)
        rows = app.taken.values("id", "version", "taken_at", "bytes", "store", "location", "proved")
        data = [{**row, "kept_because": reasons.get(row["id"], "")} for row in rows]
        lines = [
            (
                f"{row['id']}  {row['version']}  {row['taken_at']:%Y-%m-%d %H:%M} UTC  {row['bytes']} bytes in {row['store']}: "
                f"{row['location']}{'' if row['proved'] else ', NOT VERIFIED'}; "
                f"{row['kept_because'] or 'deleted after the next upgrade'}"
            )
            for row in data
        ]
        self._say(options, data, lines or [f"{app.name} has no snapshots."])

    def _nightly(self, options: dict[str, Any]) -> None:
        if not options["dry_run"]:
            word = scheduler.step()
            self._say(options, {"did": word}, [word])
            return
        plan = scheduler.whole_plan()
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

    def _execute(self, options: dict[str, Any]) -> None:
        upgrade = Upgrade.objects.select_related("app").filter(pk=options["upgrade"]).first()
        if upgrade is None:
            raise CommandError(f"there is no upgrade {options['upgrade']}")
        with _private():
            word = launcher.execute(upgrade)
        self._say(options, {"state": word}, [word])


def named(name: str) -> InfraApp:
    row = InfraApp.objects.filter(name=name).first()
    if row is None:
        known = ", ".join(InfraApp.objects.order_by("-declared", "position", "name").values_list("name", flat=True))
        raise CommandError(f"there is no app {name}. {f'Known: {known}' if known else 'No app is declared yet.'}")
    return row


def _declared(options: dict[str, Any]) -> Declaration:
    return apply.read(options["file"] or apply.place())


def _apps(options: dict[str, Any]) -> list[InfraApp]:
    """The named app, or all."""
    rows = InfraApp.objects.order_by("-declared", "position", "name")
    if not options["app"]:
        return list(rows)
    return [named(options["app"])]


def _lines(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


def _line(row: dict[str, Any]) -> str:
    marks = [f"{row['tagged_at']:%Y-%m-%d}" if row["tagged_at"] else "no date", row["state"]]
    if not row["annotated"]:
        marks.append("lightweight tag")
    marks.append("notes" if row["notes"] else "no notes")
    if row["approved_by"]:
        marks.append(f"approved by {row['approved_by']}")
    return f"{row['version']}  {', '.join(marks)}"


@contextmanager
def _private() -> Iterator[None]:
    """Files written meanwhile are readable by their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:  # a test's process continues after this
        os.umask(before)


def _execute(number: int) -> None:
    """Execute an upgrade in a thread, with a database connection of its own."""
    try:
        launcher.execute(Upgrade.objects.select_related("app").get(pk=number))
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
