"""`cc-ci deliveries list|replay`: list what the webhooks delivered, and replay it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import NO, Exit
from enrollment.models import Delivery
from enrollment.webhooks.process import replay_all, take_waiting


class Command(BaseCommand):
    help = "List webhook deliveries, newest first, or replay them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|replay")
        shown = verbs.add_parser("list", help="list deliveries")
        shown.add_argument("--limit", type=int, default=50, help="maximum number of rows (50)")
        shown.add_argument("--outcome", choices=Delivery.Outcome.values, default="", help="only with this outcome")
        shown.add_argument("--json", action="store_true", help="print JSON")
        again = verbs.add_parser("replay", help="process deliveries again; a comment never counts twice")
        again.add_argument("--forge", default="", metavar="NAME", help="only this forge's, if two forges sent the same id")
        again.add_argument("delivery", nargs="+", metavar="ID", help="id as printed by `list`")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(options)
        else:
            self._replay(options["delivery"], options["forge"])

    def _list(self, options: dict[str, Any]) -> None:
        rows = Delivery.objects.select_related("repository", "forge")
        if options["outcome"]:
            rows = rows.filter(outcome=options["outcome"])
        facts = [_facts(row) for row in rows[: max(0, options["limit"])]]
        if options["json"]:
            self.stdout.write(json.dumps(facts, indent=1))
            return
        for fact in facts:
            self.stdout.write("\t".join(str(fact[name]) for name in fact if name != "comment"))
        if not facts:
            self.stdout.write("No deliveries.")

    def _replay(self, ids: list[str], forge: str) -> None:
        found = Delivery.objects.filter(delivery_id__in=ids).order_by("received_at", "pk")
        rows = list(found.filter(forge__name=forge) if forge else found)
        if strangers := sorted(set(ids) - {row.delivery_id for row in rows}):
            raise CommandError(f"There is no delivery {', '.join(strangers)}: `cc-ci deliveries list` prints the existing ones.")
        for line in replay_all(rows)[1]:
            self.stdout.write(line)
        take_waiting()
        undone = False
        for row in found.filter(pk__in=[row.pk for row in rows]).select_related("forge"):
            where = f" of {row.forge.name}" if len(rows) > len(set(ids)) else ""
            self.stdout.write(f"{row.delivery_id}{where}\t{row.get_outcome_display()}\t{row.reason}")
            undone |= row.outcome in (Delivery.Outcome.ACCEPTED, Delivery.Outcome.FAILED)
        if undone:
            raise Exit(NO)


def _facts(row: Delivery) -> dict[str, Any]:
    place = row.repository.full_name if row.repository else ""
    return {
        "id": row.delivery_id,
        "received_at": row.received_at.isoformat(timespec="seconds"),
        "forge": row.forge.name,
        "about": f"{place}#{row.number}" if row.number else place,
        "event": f"{row.event} {row.action}".strip(),
        "status": row.status,
        "outcome": row.outcome,
        "comment": row.forge_comment_id,
        "reason": row.reason,
    }
