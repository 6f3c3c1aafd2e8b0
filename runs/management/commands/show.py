"""`cc-ci show RUN`: one run of a server."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from runs.remote import Remote, described, run_id


class Command(Remote):
    help = "Show one run of a server, with its stages and failed tests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help="its id, or the URL of its page")
        parser.add_argument("--log", action="store_true", help="show its log instead")
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self.connect(options)
        path = f"/runs/{run_id(options['run'])}"
        if options["log"]:
            self.show(self.ask("GET", f"{path}/log"), options, lambda answer: iter(answer["log"].splitlines()))
        else:
            self.show(self.ask("GET", path), options, described)
