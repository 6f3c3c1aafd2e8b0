"""`cc-ci firewall`: packet filter rules that limit what the containers of runs may reach."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.cli import MISUSE, NO, OURS, Exit
from infra.firewall import desired, nft

HOLDS = "The rules are in force"
COUNTS = "The rules only count what they would refuse"


class Command(BaseCommand):
    help = (
        "Limit what the containers of runs may reach. They keep their own networks and the internet, but neither this host "
        "nor private or link-local addresses. Without an option, show whether the rules are in force (exit code 1 if not)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--print", action="store_true", dest="show", help="print the rules without loading them")
        what.add_argument("--apply", action="store_true", help="load the rules in one step; safe to repeat")
        what.add_argument("--remove", action="store_true", help="remove these rules, and no others")
        parser.add_argument("--dry", action="store_true", help="with --print, --apply: only count and log what would be refused")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry"] and not (options["show"] or options["apply"]):
            self.stderr.write("--dry needs --apply or --print.")
            raise Exit(MISUSE)
        try:
            if options["remove"]:
                self.stdout.write("Removed the rules." if nft.remove() else "There were no rules to remove.")
                return
            if options["show"] or options["apply"]:
                self._rules(options["dry"], options["apply"])
                return
            if not self._state():
                raise Exit(NO)
        except nft.FirewallError as error:
            self.stderr.write(f"{error} Run: {error.fix}")
            raise Exit(OURS) from error

    def _rules(self, counting: bool, load: bool) -> None:
        rules, problem = desired.rules(counting)
        if problem:
            self.stderr.write(f"Left out: {problem}.")
        if not load:
            self.stdout.write(rules.table())
            return
        changed = nft.apply(rules)
        self.stdout.write(f"{COUNTS if counting else HOLDS}{'' if changed else ' (unchanged)'}.")

    def _state(self) -> bool:
        now = nft.loaded()
        if not now:
            self.stdout.write("No rules are loaded: runs can reach this host and private networks. Run: cc-ci firewall --apply")
            return False
        rules, problem = desired.rules(now.counting)
        current = now.text == nft.listing(rules)
        self.stdout.write(f"{COUNTS if now.counting else HOLDS}.")
        for where, packets in sorted(now.counts.items()):
            self.stdout.write(f"{packets:>10} packets {where}")
        if problem:
            self.stdout.write(f"Left out: {problem}.")
        if not current:
            again = f"cc-ci firewall --apply{' --dry' if now.counting else ''}"
            self.stdout.write(f"The rules differ from what the settings and enrolments require. Run: {again}")
        return current and not now.counting
