"""`cc-ci executor add|list|check|use`: CI servers that runs happen on instead of this machine."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import NO, Exit
from controlplane.untrusted import printable
from enrollment.lookup import find_forge, find_repository, split_name
from enrollment.repositories import bare
from runs.executors.check import check_executor
from runs.models import ExecutorChoice, RemoteExecutor

LOCAL = "local"


class Command(BaseCommand):
    help = "Add a CI server to run on, choose what runs there, or check it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|check|use")
        add = actions.add_parser("add", help="add an executor, or change one")
        add.add_argument("name", help="name to use here; not `local`, which is this machine")
        add.add_argument("--kind", choices=RemoteExecutor.Kind.values, default=RemoteExecutor.Kind.DRONE)
        add.add_argument("--url", required=True, help="its URL, such as https://drone.example.org")
        add.add_argument("--repository", required=True, metavar="OWNER/REPO", help="the runner repository, with the pipeline")
        add.add_argument("--branch", default="main", help="the branch with the pipeline (default: main)")
        add.add_argument("--slots", type=_slots, help="concurrent runs there (default: 1, or what it has)")
        # Never the token itself: arguments are seen by every user of a machine, and kept in the shell's history.
        add.add_argument("--token-env", required=True, metavar="VARIABLE", help="name of the environment variable with the token")
        add.add_argument(
            "--hook-secret-env",
            default="",
            metavar="VARIABLE",
            help="name of the environment variable with the secret of Drone's webhooks; an empty one switches them off",
        )
        actions.add_parser("list", help="list the executors, and what runs there")
        check = actions.add_parser("check", help="find what keeps an executor from working")
        check.add_argument("name", nargs="?", default="", help="name of the executor (default: all)")
        use = actions.add_parser("use", help="choose what runs on an executor")
        use.add_argument("name", help="name of the executor, or `local` for this machine")
        use.add_argument("--forge", default="", help="URL or name of the forge, if there are several")
        use.add_argument(
            "--repository", default="", metavar="OWNER/REPO", help="only this repository (default: all of the forge)"
        )
        use.add_argument("--inherit", action="store_true", help="with --repository: as its forge's others, whatever NAME is")

    def handle(self, *args: Any, **options: Any) -> None:
        {"add": self._add, "list": self._list, "check": self._check, "use": self._use}[options["action"]](options)

    def _add(self, options: dict[str, Any]) -> None:
        token = os.environ.get(options["token_env"], "").strip()
        if not token:
            raise CommandError(
                f"The environment variable {options['token_env']} is empty or not set. Type, for example:\n"
                f"  read -rs {options['token_env']} && export {options['token_env']}"
            )
        if options["name"] == LOCAL:
            raise CommandError("`local` is this machine: choose another name.")
        split_name(options["repository"])
        try:
            url = bare(options["url"]).removesuffix("/api")
        except ValueError as error:
            raise CommandError(str(error)) from error
        fields = {name: options[name] for name in ("kind", "repository", "branch")} | {"url": url, "token": token}
        if options["slots"]:
            fields["slots"] = options["slots"]
        if options["hook_secret_env"]:
            fields["hook_secret"] = os.environ.get(options["hook_secret_env"], "").strip()
        row, made = RemoteExecutor.objects.update_or_create(
            name=options["name"], defaults={**fields, "failures": 0, "open_until": None, "last_error": ""}
        )
        self.stdout.write(f"{'Added' if made else 'Changed'} {row.name}.")
        self._show(row)
        if made:
            self.stdout.write(f"Next: cc-ci executor use {row.name}")

    def _list(self, options: dict[str, Any]) -> None:
        for row in RemoteExecutor.objects.all():
            used = [f"all of {forge}" for forge in row.forges.all()]
            used += [choice.repository.full_name for choice in row.choices.select_related("repository")]
            state = row.last_error if row.failures else "healthy"
            able = ", ".join(row.capabilities) or "not checked"
            room = f"{row.slots} {'slot' if row.slots == 1 else 'slots'}"
            line = (row.name, row.kind, row.url, row.repository, ", ".join(used) or "not used", state, row.version, able, room)
            self.stdout.write("\t".join(map(printable, line)))
        here = ExecutorChoice.objects.filter(executor=None).select_related("repository")
        names = ", ".join(choice.repository.full_name for choice in here)
        self.stdout.write(f"{LOCAL}\tthis machine\t{names or 'everything else'}{', and everything else' if names else ''}")

    def _check(self, options: dict[str, Any]) -> None:
        rows = [_named(options["name"])] if options["name"] else list(RemoteExecutor.objects.all())
        if not rows:
            self.stdout.write("There is no executor but this machine.")
        worked = [self._show(row) for row in rows]
        if not all(worked):
            raise Exit(NO)

    def _show(self, row: RemoteExecutor) -> bool:
        """Print what was found; whether it works."""
        findings = list(check_executor(row))
        for finding in findings:
            self.stdout.write(f"{finding.level}: {finding.name}: {finding.text}")
            if finding.fix:
                self.stdout.write(f"  {finding.fix}")
        return not any(finding.level == "error" for finding in findings)

    def _use(self, options: dict[str, Any]) -> None:
        row = None if options["name"] == LOCAL else _named(options["name"])
        forge = find_forge(options["forge"])
        if options["repository"]:
            repository = find_repository(options["repository"], forge)
            if options["inherit"]:
                ExecutorChoice.objects.filter(repository=repository).delete()
                self.stdout.write(f"{repository.full_name} now runs as its forge's others.")
                return
            ExecutorChoice.objects.update_or_create(repository=repository, defaults={"executor": row})
            what = repository.full_name
        else:
            for other in RemoteExecutor.objects.filter(forges=forge):
                other.forges.remove(forge)
            if row:
                row.forges.add(forge)
            what = f"Everything of {forge.name} without a choice of its own"
        self.stdout.write(
            f"{what} now runs on {row.name if row else 'this machine'}. Runs that have started stay where they are."
        )


def _slots(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1000:
        raise ValueError
    return number


def _named(name: str) -> RemoteExecutor:
    row = RemoteExecutor.objects.filter(name=name).first()
    if row is None:
        known = ", ".join([*RemoteExecutor.objects.values_list("name", flat=True), LOCAL])
        raise CommandError(f"There is no executor {name!r}. Known: {known}.")
    return row
