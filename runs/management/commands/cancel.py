"""`cc-ci cancel RUN`: stop a run of a server."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from runs.remote import Remote, described, run_id


class Command(Remote):
    help = "Cancel a run of a server."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help="its id, or the URL of its page")
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self.connect(options)
        self.show(self.ask("POST", f"/runs/{run_id(options['run'])}/cancel"), options, described)
