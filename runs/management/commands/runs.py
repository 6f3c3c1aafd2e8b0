"""`cc-ci runs`: the runs of a server, newest first."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from runs.models import State
from runs.remote import Remote, one_line


class Command(Remote):
    help = "List the runs of a server, newest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="?", default="", metavar="OWNER/REPO", help="only runs of this repository")
        parser.add_argument("--state", choices=State.values, default="", help="only runs in this state")
        parser.add_argument("--active", action="store_true", help="only runs that have not ended")
        parser.add_argument("--most", type=int, default=25, metavar="COUNT", help="how many (default: 25)")
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self.connect(options)
        active = "true" if options["active"] else ""
        params = {"repository": options["repository"], "state": options["state"], "active": active}
        self.show(list(self.pages("/runs", params, options["most"])), options, lambda runs: map(one_line, runs))
