"""`cc-ci infra …`: what is declared of the server's own apps, how they stand, and what keeps newer versions from coming."""

from __future__ import annotations

import getpass
import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from controlplane.cli import NO, OURS, Exit
from infra import applying, doctor, releases
from infra.applying import NotApplied
from infra.declaration import Declaration, DeclarationError, dump
from infra.looking import NotApproved, approve, look, record
from infra.management.operating import Operating, add_actions
from infra.models import InfraApp, InfraRelease
from infra.plan import APPLIED, Change
from infra.status import describe, in_words


class Command(Operating):
    help = "The server's own apps: compare, apply and export infra.yml; show how they stand; upgrade them, and bring them back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        def add(name: str, text: str, *, file: bool = False, app: bool = False) -> ArgumentParser:
            action: ArgumentParser = actions.add_parser(name, help=text)
            action.add_argument("--json", action="store_true", help="for programs")
            if file:
                action.add_argument(
                    "--file", type=Path, metavar="PATH", help="infra.yml, when not where it was applied from last"
                )
            if app:
                action.add_argument("app", nargs="?", metavar="APP", help="only this one")
            return action

        add("diff", "compare infra.yml with what is known and what runs; 1 when they differ", file=True)
        action = add("apply", "take over what infra.yml says; never lowers a version, deploys nothing", file=True)
        action.add_argument(
            "--restore",
            action="store_true",
            help="then bring up all that does not run, in order, with the data of the newest snapshots",
        )
        add("export", "print the infra.yml that the database amounts to")
        add("check", "see whether infra.yml can be used, and its secrets and stores are within reach", file=True)
        add("status", "how each app stands, what is held, and what lifts it", app=True)
        add("releases", "look for releases now, and list them", app=True)
        approving = add("approve", "let one version that is held come")
        approving.add_argument("app", metavar="APP")
        approving.add_argument("version", metavar="VERSION")
        add_actions(add)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action'].replace('-', '_')}")(options)
        except DeclarationError as error:
            self._say(options, {"errors": [asdict(problem) for problem in error.problems]}, [], [str(error)])
            raise Exit(NO) from error
        except NotApplied as error:
            raise CommandError(str(error)) from error

    def _say(self, options: dict[str, Any], data: Any, lines: list[str], errors: list[str] | None = None) -> None:
        """Print `data` for programs, else the lines; errors go where errors go."""
        if options["json"]:
            self.stdout.write(json.dumps(data, indent=2, default=str))
            return
        for line in lines:
            self.stdout.write(line)
        for line in errors or []:
            self.stderr.write(line)

    def _diff(self, options: dict[str, Any]) -> None:
        changes = applying.differences(_declared(options))
        self._say(options, [asdict(change) for change in changes], _lines(changes) or ["No differences."])
        if changes:
            raise Exit(NO)

    def _apply(self, options: dict[str, Any]) -> None:
        path = options["file"] or applying.place()
        changes = applying.apply(applying.read(path), path)
        done = sum(change.kind in APPLIED for change in changes)
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
        document = applying.export()
        self._say(options, document.model_dump(mode="json"), [dump(document).rstrip("\n")])

    def _check(self, options: dict[str, Any]) -> None:
        findings = list(doctor.examine(options["file"] or applying.place()))
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
                releases.discover(app)
                record(app, look(app))
            except releases.NotDiscovered as error:
                failed.append(str(error))
            rows = list(app.releases.filter(gone=False))
            data.append(
                {
                    "app": app.name,
                    "error": app.discovery_error,
                    "releases": [_release(row) for row in rows],
                    "unreadable": app.unreadable,
                }
            )
            lines.append(
                f"{app.name}: {len(rows)} releases of {app.recipe}, running {app.running_version or 'none that is known'}"
            )
            lines += [f"  {_words(row)}" for row in rows]
            lines += [f"  {item['tag']}: not readable. {item['reason']}" for item in app.unreadable]
        self._say(options, data, lines, failed)
        if failed:
            raise Exit(OURS)

    def _approve(self, options: dict[str, Any]) -> None:
        app = _apps(options)[0]
        try:
            row = approve(app, options["version"], getpass.getuser())
        except NotApproved as error:
            self._say(options, {"approved": False, "error": str(error)}, [], [str(error)])
            raise Exit(NO) from error
        words = f"{app.name} {row.version} is approved: it comes with the next upgrade."
        rest = [f"  Still: {reason['text']} {reason['lift']}" for reason in row.reasons]
        self._say(options, {"approved": True, "lifted": row.lifted, "still": row.reasons}, [words, *rest])


def _declared(options: dict[str, Any]) -> Declaration:
    return applying.read(options["file"] or applying.place())


def _apps(options: dict[str, Any]) -> list[InfraApp]:
    """The app that was named, or all."""
    rows = InfraApp.objects.order_by("-declared", "position", "name")
    if not options["app"]:
        return list(rows)
    named = rows.filter(name=options["app"]).first()
    if named is None:
        known = ", ".join(rows.values_list("name", flat=True))
        raise CommandError(f"there is no app {options['app']}. {f'Known: {known}' if known else 'None is declared yet.'}")
    return [named]


def _lines(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


def _release(row: InfraRelease) -> dict[str, Any]:
    return {
        "version": row.version,
        "state": row.state,
        "annotated": row.annotated,
        "tagged_at": row.tagged_at,
        "notes": row.notes,
        "commit": row.commit,
        "reasons": row.reasons,
        "approved_by": row.approved_by,
    }


def _words(row: InfraRelease) -> str:
    marks = [f"{row.tagged_at:%Y-%m-%d}" if row.tagged_at else "no date", row.state]
    if not row.annotated:
        marks.append("lightweight tag")
    marks.append("notes" if row.notes else "no notes")
    if row.approved_by:
        marks.append(f"approved by {row.approved_by}")
    return f"{row.version}  {', '.join(marks)}"
