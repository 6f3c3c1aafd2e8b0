"""`cc-ci rotate_webhook_secret`: rotate webhooks' secrets. Safe to interrupt anywhere and to run again."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from enrollment.forge_access.rate_limit import patient
from enrollment.models import Forge, WebhookConfig
from enrollment.webhooks.reconcile import OVERLAP, reconcile
from enrollment.webhooks.registration import rotate


class Command(BaseCommand):
    help = (
        "Rotate the secrets of webhooks. A new hook is created, both secrets are accepted for a while, then the old hook "
        "is deleted. If interrupted, run it again: it continues where it stopped."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("place", nargs="*", metavar="OWNER/REPO|ORGANISATION", help="whose webhook secret to rotate")
        parser.add_argument("--all", action="store_true", help="every hook of every forge")

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["place"]) == options["all"]:
            raise CommandError("Name repositories or organisations, or add --all.")
        rows = WebhookConfig.objects.exclude(state=WebhookConfig.State.ROTATING).select_related("repository", "forge")
        hooks = [hook for hook in rows if hook.forge.enabled]
        if places := {typed.strip("/").lower() for typed in options["place"]}:
            known = {hook.place.lower() for hook in hooks}
            if strangers := sorted(places - known):
                raise CommandError(
                    f"There is no webhook of {', '.join(strangers)}. `cc-ci reconcile_webhooks --all` lists the existing ones."
                )
            hooks = [hook for hook in hooks if hook.place.lower() in places]
        with patient():
            begun, left = rotate(hooks)
        for line in left:
            self.stdout.write(line)
        problems: list[str] = []
        for forge in Forge.objects.filter(enabled=True, hooks__in=[hook.pk for hook in hooks]).distinct():
            # Even if nothing was started now: an interrupted run is continued.
            result = reconcile(forge, apply=True, due_only=True)
            problems += [*result.problems, *([result.text()] if result.skipped else [])]
        new = WebhookConfig.objects.filter(pk__in=[hook.pk for hook in begun]).select_related("repository", "forge")
        made = [hook for hook in new if hook.state in (WebhookConfig.State.REGISTERED, WebhookConfig.State.VERIFIED)]
        problems += [
            (
                f"{hook.place}: the new hook is {hook.state}; the old one stays until the new one is registered. {hook.reason}"
            ).rstrip()
            for hook in new
            if hook not in made
        ]
        minutes = int(OVERLAP.total_seconds() // 60)
        self.stdout.write(
            f"{len(made)} secrets rotated. The old ones stay valid for {minutes} minutes; then `cc-ci work`, or `cc-ci "
            "reconcile_webhooks --apply`, deletes their hooks."
        )
        for problem in problems:
            self.stderr.write(problem)
        if problems:
            raise Exit(OURS)
