"""`cc-ci reconcile_webhooks`: print what would be done about the webhooks; with `--apply` do it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.cli import OURS, Exit
from enrollment.forge_access.rate_limit import patient
from enrollment.lookup import find_forges
from enrollment.webhooks.plan import WRITES, Action, Do
from enrollment.webhooks.reconcile import reconcile
from enrollment.webhooks.result import Pass


class Command(BaseCommand):
    help = "Compare the webhooks at the forges with the desired ones. Prints the plan; changes nothing without --apply."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--apply", action="store_true", help="execute the plan")
        parser.add_argument("--forge", default="", metavar="URL", help="only this forge")
        parser.add_argument("--all", action="store_true", help="also print hooks that need no change")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        forges = find_forges(options["forge"])
        with patient():
            passes = [reconcile(forge, apply=options["apply"]) for forge in forges]
        if options["json"]:
            self.stdout.write(json.dumps([_facts(result) for result in passes], indent=1))
        else:
            for result in passes:
                self._print(result, options["all"], options["apply"])
        if any(result.problems or result.skipped for result in passes):
            raise Exit(OURS)

    def _print(self, result: Pass, everything: bool, applied: bool) -> None:
        for action in result.actions:
            if everything or action.do != Do.NOTHING:
                self.stdout.write(action.text())
        for problem in result.problems:
            self.stderr.write(problem)
        self.stdout.write(result.text())
        if not applied and any(action.do in WRITES for action in result.actions):
            self.stdout.write("To apply it, run: cc-ci reconcile_webhooks --apply")


def _facts(result: Pass) -> dict[str, Any]:
    return {
        "forge": result.forge,
        "actions": [_line(action) for action in result.actions],
        "writes": result.writes,
        "problems": result.problems,
        "skipped": result.skipped,
    }


def _line(action: Action) -> dict[str, Any]:
    hook = action.hook.id if action.hook else None
    return {"do": action.do.value, "place": action.place, "hook": hook, "reason": action.reason}
