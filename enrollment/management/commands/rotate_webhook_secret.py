"""`cc-ci rotate_webhook_secret`: give webhooks new secrets. Safe to interrupt anywhere and to run again."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from enrollment.budget import patient
from enrollment.hook_reconcile import OVERLAP, reconcile
from enrollment.hook_rows import rotate
from enrollment.models import Forge, WebhookConfig


class Command(BaseCommand):
    help = (
        "Give webhooks new secrets: a new hook is made, both count for a while, then the old one is deleted. "
        "Run it again when it was interrupted: what has begun is gone on with, and begins no second time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("place", nargs="*", metavar="OWNER/REPO|ORGANISATION", help="whose hook")
        parser.add_argument("--all", action="store_true", help="every hook of every forge")

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["place"]) == options["all"]:
            raise CommandError("Name repositories or organisations, or add --all.")
        rows = WebhookConfig.objects.exclude(state=WebhookConfig.State.ROTATING).select_related("repository", "forge")
        hooks = [hook for hook in rows if hook.forge.enabled]
        if places := {typed.strip("/").lower() for typed in options["place"]}:
            known = {hook.place.lower() for hook in hooks}
            if strangers := sorted(places - known):
                raise CommandError(f"There is no webhook of {', '.join(strangers)}. `cc-ci reconcile_webhooks --all` lists them.")
            hooks = [hook for hook in hooks if hook.place.lower() in places]
        with patient():
            begun, left = rotate(hooks)
        for line in left:
            self.stdout.write(line)
        problems: list[str] = []
        for forge in Forge.objects.filter(enabled=True, hooks__in=[hook.pk for hook in hooks]).distinct():
            # Also where nothing has begun now: what an interrupted run has begun is gone on with.
            result = reconcile(forge, apply=True, due_only=True)
            problems += [*result.problems, *([result.words()] if result.skipped else [])]
        new = WebhookConfig.objects.filter(pk__in=[hook.pk for hook in begun]).select_related("repository", "forge")
        made = [hook for hook in new if hook.state in (WebhookConfig.State.REGISTERED, WebhookConfig.State.VERIFIED)]
        problems += [
            f"{hook.place}: the new hook is {hook.state}; the old one stays until it stands. {hook.reason}".rstrip()
            for hook in new
            if hook not in made
        ]
        minutes = int(OVERLAP.total_seconds() // 60)
        self.stdout.write(
            f"{len(made)} new secrets. The old ones count for {minutes} minutes more; then `cc-ci work`, or "
            "`cc-ci reconcile_webhooks --apply`, deletes their hooks."
        )
        for problem in problems:
            self.stderr.write(problem)
        if problems:
            raise Exit(OURS)
