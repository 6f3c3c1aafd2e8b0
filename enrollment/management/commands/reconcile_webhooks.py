"""`cc-ci reconcile_webhooks`: print what is to be done about the webhooks; with `--apply` do it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from enrollment.budget import patient
from enrollment.hook_pass import Pass
from enrollment.hook_reconcile import reconcile
from enrollment.models import Forge
from enrollment.naming import NotNamed, find_forge
from enrollment.webhooks import WRITES, Action, Do


class Command(BaseCommand):
    help = "Hold the webhooks at the forges against what is wanted, and print the plan: nothing is changed without --apply."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--apply", action="store_true", help="do what the plan says")
        parser.add_argument("--forge", default="", metavar="URL", help="this forge alone")
        parser.add_argument("--all", action="store_true", help="also print hooks about which nothing is to be done")
        parser.add_argument("--json", action="store_true", help="for machines")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            forges = [find_forge(options["forge"])] if options["forge"] else list(Forge.objects.filter(enabled=True))
        except NotNamed as error:
            raise CommandError(str(error)) from error
        if not forges:
            raise CommandError("No forge is known yet. Type: cc-ci forge add --url https://git.example.org --token-env VARIABLE")
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
                self.stdout.write(action.words())
        for problem in result.problems:
            self.stderr.write(problem)
        self.stdout.write(result.words())
        if not applied and any(action.do in WRITES for action in result.actions):
            self.stdout.write("To do it, type: cc-ci reconcile_webhooks --apply")


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
