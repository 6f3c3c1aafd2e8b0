"""`cc-ci start OWNER/REPO`: start a run on a server."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from controlplane.cli import NO, Exit
from runs.models import FINAL
from runs.remote import Remote, described, exit_code, run_id

#: Seconds between two looks at a run that is waited for.
LOOK = 10.0
#: For so many looks in a row the server may fail or be away.
PATIENCE = 30


class Command(Remote):
    help = "Start a run on a server, of a default branch or an earlier run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="?", default="", metavar="OWNER/REPO", help="run its default branch")
        parser.add_argument("--again", default="", metavar="RUN", help="instead: repeat this run, on the same commit")
        parser.add_argument("--sha", default="", help="refuse unless the branch is at this commit (the full id)")
        parser.add_argument("--forge", default="", metavar="URL", help="the forge, if several have a repository of this name")
        parser.add_argument("--extra-tests", action="store_true", help="also run the extra tests")
        parser.add_argument(
            "--wait", action="store_true", help="wait for its end, and exit by its verdict: 0 passed, 1 failed, 2 neither"
        )
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["repository"]) == bool(options["again"]) or (options["again"] and (options["sha"] or options["forge"])):
            raise CommandError("Give OWNER/REPO, or --again RUN alone.")
        self.connect(options)
        extra = {"extra_tests": options["extra_tests"]}
        if options["again"]:
            run = self.ask("POST", f"/runs/{run_id(options['again'])}/again", body=extra)
        else:
            body = {name: options[name] for name in ("repository", "sha", "forge")}
            run = self.ask("POST", "/runs", body=body | extra)
        if options["wait"]:
            run = self._wait(run)
        self.show(run, options, described)
        if options["wait"]:
            raise Exit(exit_code(run["state"]))

    def _wait(self, run: dict[str, Any]) -> dict[str, Any]:
        failures = 0
        while run["state"] not in FINAL:
            time.sleep(LOOK)
            try:
                run, failures = self.ask("GET", f"/runs/{run['id']}"), 0
            except Exit as failure:
                failures += 1
                if failure.code == NO or failures == PATIENCE:
                    raise
        return run
