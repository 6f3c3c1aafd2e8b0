"""`cc-ci test [PATH]`: the tests of the recipe one stands in, with a deployment of its own or against an app that runs."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from controlplane.cli import MISUSE
from runs.harness.protocol import Request
from runs.localrun import LocalRun


class Command(LocalRun):
    help = "Test the recipe in a folder, as `cc-ci run` does, or its tests alone against an app that runs already."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", metavar="PATH", nargs="?", default=".", help="the recipe's folder (default: this one)")
        parser.add_argument(
            "--app", metavar="URL", default="", help="an app that runs already: nothing is deployed, changed or torn down"
        )
        super().add_arguments(parser)

    def request(self, options: dict[str, Any]) -> Request:
        if not Path(options["source"]).is_dir():
            said = f"There is no folder {options['source']}. For a clone URL type `cc-ci run URL`."
            raise CommandError(said, returncode=MISUSE)
        request = super().request(options | {"source": str(Path(options["source"]).resolve())})
        return request.model_copy(update={"app_url": _address(options["app"])})


def _address(url: str) -> str:
    """The URL of a running app, checked. Raises CommandError with code 64."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.path.strip("/") or parts.query or parts.username:
        raise CommandError(
            f"--app {url} is no address of an app. Give it as https://app.example.org or http://127.0.0.1:8080, without a path.",
            returncode=MISUSE,
        )
    return url.rstrip("/")
