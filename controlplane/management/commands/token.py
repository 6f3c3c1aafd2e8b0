"""`cc-ci token add|list|revoke`: tokens for the API."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from controlplane import tokens
from controlplane.models import ApiToken


class Command(BaseCommand):
    help = "Create a token for the API, list the tokens, or revoke one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke")
        scopes = "; ".join(f"{scope.value}: {scope.label}" for scope in ApiToken.Scope)
        add = actions.add_parser("add", help="create a token and show it, once")
        add.add_argument("user", metavar="USER", help="the staff user as whom it acts: it may never do more than this user")
        add.add_argument("name", metavar="NAME", help="what it is for")
        add.add_argument(
            "--scope", action="append", choices=ApiToken.Scope.values, required=True, help=f"may be repeated; {scopes}"
        )
        add.add_argument(
            "--days", type=int, default=tokens.DEFAULT_DAYS, help=f"days until it expires (default: {tokens.DEFAULT_DAYS})"
        )
        actions.add_parser("list", help="list the tokens, without what is secret")
        revoke = actions.add_parser("revoke", help="revoke a token for good")
        revoke.add_argument("key", metavar="KEY", help="its key, from: cc-ci token list")

    def handle(self, *args: Any, **options: Any) -> None:
        {"add": self._add, "list": self._list, "revoke": self._revoke}[options["action"]](options)

    def _add(self, options: dict[str, Any]) -> None:
        people = get_user_model()
        user = people.objects.filter(**{people.USERNAME_FIELD: options["user"]}).first()
        if user is None or not (user.is_active and user.is_staff):
            raise CommandError(f"{options['user']} is not an active staff user. To create one: cc-ci createsuperuser")
        if not 1 <= options["days"] <= tokens.MOST_DAYS:
            raise CommandError(f"--days must be from 1 to {tokens.MOST_DAYS}.")
        if not 1 <= len(options["name"]) <= 100 or not options["name"].isprintable():
            raise CommandError("NAME must have 1 to 100 characters, in one line.")
        row, token = tokens.make(user, options["name"], options["scope"], options["days"])
        self.stderr.write(f"Created {row}, valid until {row.expires_at:%Y-%m-%d}. It is not shown again:")
        self.stdout.write(token)

    def _list(self, options: dict[str, Any]) -> None:
        for row in ApiToken.objects.select_related("user"):
            used = f"last used {row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never used"
            what = f"{tokens.status_of(row)}, expires {row.expires_at:%Y-%m-%d}, {used}"
            self.stdout.write(f"{row.key}  {row.user.get_username()}  {row.name}  {','.join(row.scopes)}  {what}")

    def _revoke(self, options: dict[str, Any]) -> None:
        rows = ApiToken.objects.filter(key=options["key"])
        if not rows.exists():
            raise CommandError(f"There is no token {options['key']}. See: cc-ci token list")
        done = tokens.revoke(rows)
        self.stdout.write(f"{'Revoked' if done else 'It was revoked before'}: {options['key']}")
