"""`cc-ci run PATH_OR_URL`: a whole run on this machine, without a forge or database."""

from __future__ import annotations

from argparse import ArgumentParser

from runs.local import LocalRun


class Command(LocalRun):
    help = "Test a recipe from a folder or a clone URL, without a forge."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", metavar="PATH_OR_URL", help="the recipe's folder or clone URL")
        parser.add_argument("--sha", default="", help="the commit, 40 hex digits (default for a folder: its current state)")
        parser.add_argument("--ref", default="", help="a branch, tag or refs/pull/N/head")
        super().add_arguments(parser)
