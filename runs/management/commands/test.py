"""`cc-ci test [PATH]`: runs the tests of a recipe in a folder, with a deployment of its own or against a running app."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from controlplane.cli import MISUSE
from runs.harness.protocol import Request
from runs.local import LocalRun


class Command(LocalRun):
    help = "Test the recipe in a folder, or an app that is already running."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "source", metavar="PATH", nargs="?", default=".", help="the recipe's folder (default: the current folder)"
        )
        parser.add_argument(
            "--app", metavar="URL", default="", help="test this running app, without deploying, changing or tearing down anything"
        )
        super().add_arguments(parser)

    def request(self, options: dict[str, Any]) -> Request:
        if not Path(options["source"]).is_dir():
            message = f"There is no folder {options['source']}. To test from a clone URL, run: cc-ci run URL"
            raise CommandError(message, returncode=MISUSE)
        if options["app"] and options["tests"]:
            raise CommandError("--tests requires a deployment, and cannot be combined with --app.", returncode=MISUSE)
        request = super().request(options | {"source": str(Path(options["source"]).resolve())})
        return request.model_copy(update={"app_url": _address(options["app"])})


def _address(url: str) -> str:
    """The validated URL of a running app. Raises CommandError with code 64."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.path.strip("/") or parts.query or parts.username:
        raise CommandError(
            f"Invalid --app {url}: expected https://app.example.org or http://127.0.0.1:8080, without a path.",
            returncode=MISUSE,
        )
    return url.rstrip("/")
