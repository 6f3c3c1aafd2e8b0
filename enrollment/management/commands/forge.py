"""`cc-ci forge add|list|login|tests`: manage the watched forges, who logs in with them, and where tests for their recipes are."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from enrollment.forge_access.clients import client_for, kind_of
from enrollment.forge_login.oauth import sign_in_of
from enrollment.forge_login.views import redirect_url
from enrollment.forges.base import ForgeError, NotFound, Unauthorized
from enrollment.forges.kinds import KINDS
from enrollment.lookup import NO_FORGE, find_forge, split_name
from enrollment.models import Forge
from enrollment.repositories import add_forge, bare, keep_tests


class Command(BaseCommand):
    help = "Add a forge, replace its token, let its people log in, or list the forges."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|login|tests")
        labels = ", ".join(kind.label for kind in KINDS.values())
        add = actions.add_parser("add", help=f"add a forge ({labels}), or replace its token")
        add.add_argument("--kind", choices=KINDS, default="", help="kind of forge (default: the first)")
        add.add_argument("--url", required=True, help="its URL, such as https://git.example.org")
        # Never the token itself: arguments are seen by every user of a machine, and kept in the shell's history.
        add.add_argument("--token-env", required=True, metavar="VARIABLE", help="name of the environment variable with the token")
        add.add_argument("--name", default="", help="name to use here (default: its host)")
        add.add_argument(
            "--owner",
            action="append",
            default=[],
            help="also enrol this owner's repositories that carry the topic; may be repeated",
        )
        actions.add_parser("list", help="list the forges and their status")
        login = actions.add_parser("login", help="let people log in with a forge; without options: what to enter there")
        login.add_argument("--client-id", default="", help="of the OAuth2 application at the forge")
        login.add_argument("--client-secret-env", default="", metavar="VARIABLE", help="name of the variable with its secret")
        login.add_argument("--off", action="store_true", help="nobody logs in with it any more")
        login.add_argument("--forge", default="", help="URL or name of the forge, if there are several")
        tests = actions.add_parser("tests", help="set the repository whose tests are added to the recipes' own")
        tests.add_argument("repository", nargs="?", default="", metavar="OWNER/REPO", help="repository at the forge")
        tests.add_argument("--none", action="store_true", help="use none")
        tests.add_argument("--forge", default="", help="URL or name of the forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        {"add": self._add, "list": self._list, "login": self._login, "tests": self._tests}[options["action"]](options)

    def _add(self, options: dict[str, Any]) -> None:
        token = _from(options["token_env"])
        try:
            url = bare(options["url"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        name = options["name"] or urlsplit(url).netloc
        if taken := Forge.objects.filter(name=name).exclude(url=url).first():
            raise CommandError(f"The name {name} is already taken by {taken.url}: choose another one with --name.")
        try:
            forge, made = add_forge(options["url"], token, options["name"], options["kind"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        except Unauthorized as error:
            raise CommandError(f"{error}\n{error.advice}\nNothing was changed.") from error
        except ForgeError as error:
            self.stderr.write(f"{error}\n{error.advice}\nNothing was changed.")
            raise Exit(OURS) from error
        if options["owner"]:
            forge.watched_owners = sorted({*forge.watched_owners, *options["owner"]})
            forge.save(update_fields=["watched_owners"])
        self.stdout.write(
            f"{'Added' if made else 'Updated'} {forge.name}: version {forge.version}, cc-ci is {forge.bot_login} there."
        )
        self.stdout.write("Next: cc-ci enroll OWNER/REPO")

    def _login(self, options: dict[str, Any]) -> None:
        forge = find_forge(options["forge"])
        kind, client_id, variable = kind_of(forge), options["client_id"], options["client_secret_env"]
        if kind.sign_in is None:
            raise CommandError(f"Nobody can log in with a forge of the kind {kind.label}.")
        if bool(client_id) != bool(variable) or (client_id and options["off"]):
            raise CommandError("Give --client-id and --client-secret-env together, or --off.")
        if client_id or options["off"]:
            forge.oauth_client_id, forge.oauth_client_secret = client_id, _from(variable) if client_id else ""
            forge.save(update_fields=["oauth_client_id", "oauth_client_secret"])
        self.stdout.write(
            f"People can log in with {forge.name}."
            if sign_in_of(forge)
            else f"Nobody logs in with {forge.name}. Create an OAuth2 application (a confidential client) at\n"
            f"  {kind.pages.tokens.format(forge=forge.url)}\nwith the redirect URL\n  {redirect_url(forge)}\n"
            "Then type: cc-ci forge login --client-id ID --client-secret-env VARIABLE"
        )

    def _tests(self, options: dict[str, Any]) -> None:
        typed = options["repository"]
        if bool(typed) == options["none"]:
            raise CommandError("Give OWNER/REPO, or --none.")
        forge = find_forge(options["forge"])
        if typed:
            split_name(typed)
        try:
            row = keep_tests(forge, typed, client_for(forge))
        except NotFound as error:
            raise CommandError(f"{error}\n{error.advice}\nNothing was changed.") from error
        except ForgeError as error:
            self.stderr.write(f"{error}\n{error.advice}\nNothing was changed.")
            raise Exit(OURS) from error
        self.stdout.write(
            f"Runs at {forge.name} now add the tests of {row.full_name}: tests/<recipe>/ on {row.default_branch}."
            if row
            else f"Runs at {forge.name} now use only the recipes' own tests."
        )

    def _list(self, options: dict[str, Any]) -> None:
        for forge in Forge.objects.all():
            state = forge.last_error or ("healthy" if forge.last_ok_at else "not polled yet")
            self.stdout.write(f"{forge.name}\t{forge.url}\tas {forge.bot_login or '?'}\t{state}")
        if not Forge.objects.exists():
            self.stdout.write(NO_FORGE)


def _from(variable: str) -> str:
    """A secret from the environment. Raises CommandError if there is none."""
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise CommandError(
            f"The environment variable {variable} is empty or not set. Type, for example:\n"
            f"  read -rs {variable} && export {variable}"
        )
    return secret
