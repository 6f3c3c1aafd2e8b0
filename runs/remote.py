"""The commands that ask a cc-ci server through its API, from anywhere: no database is needed here.

Exit codes: 0 done, 1 the server refuses, 2 it cannot be reached or failed, 64 wrong arguments or token.
"""

from __future__ import annotations

import json
import os
import stat
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import NO, OURS, Exit
from controlplane.config import SERVER, TOKEN
from controlplane.untrusted import printable
from enrollment.forges.base import Ask, Forbidden, ForgeError, NotFound, Rejected, Unauthorized
from enrollment.forges.http import Http, json_of

#: Seconds for an answer: to start a run, the server asks the forge first.
TIMEOUT = 60.0
#: Statuses by which a server says that the request itself was wrong.
_WRONG = (400, 401, 413, 415, 422)


class Remote(BaseCommand):
    """Base of these commands. Each adds its own arguments, asks with `ask` and shows with `show`.

    The server is not trusted: its answers are filtered for the terminal, and only the address that was named gets the token.
    """

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute(*args, **options)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.stderr.write(
                f"These are not the answers of a cc-ci server ({printable(repr(error))}). Check the address of the server."
            )
            raise Exit(OURS) from error

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--server", default="", metavar="URL", help=f"the cc-ci server (default: {SERVER} in the environment)"
        )
        # Never the token itself: arguments are seen by every user of a machine, and kept in the shell's history.
        parser.add_argument(
            "--token-file", default="", metavar="FILE", help=f"file with the token (default: {TOKEN} in the environment)"
        )
        parser.add_argument("--json", action="store_true", help="print only the answer, as JSON")

    def connect(self, options: dict[str, Any]) -> None:
        """Raises CommandError if the server or the token is missing."""
        url = (options["server"] or os.environ.get(SERVER, "")).rstrip("/")
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandError(f"Name the server, such as --server https://ci.example.org, or set {SERVER}.")
        try:
            token = self._read(Path(options["token_file"])) if options["token_file"] else os.environ.get(TOKEN, "")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"Cannot read the token: {error}") from error
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable():
            raise CommandError(
                f"A token is needed, in {TOKEN} or in the file of --token-file. To create one, on the server: cc-ci token add"
            )
        kinds = dict.fromkeys(("Accept", "Content-Type"), "application/json")
        headers = {"Authorization": f"Bearer {token}", "User-Agent": f"cc-ci/{settings.VERSION}", **kinds}
        self._http = Http(url, "/api", headers, TIMEOUT, None, lambda method, path: Ask(method), redirects=False)

    def _read(self, path: Path) -> str:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                self.stderr.write(f"Warning: every user of this machine can read the token. Run: chmod 600 {path}")
            return file.read(1000)

    def ask(self, method: str, path: str, params: dict[str, Any] | None = None, body: dict[str, Any] | None = None) -> Any:
        """The server's answer. Raises Exit or CommandError with the server's words."""
        given = {name: value for name, value in (params or {}).items() if value}
        try:
            return json_of(self._http.once(method, path, given, body))
        except ForgeError as error:
            text, refused = printable(str(error)), isinstance(error, (Unauthorized, Forbidden, NotFound, Rejected))
            if refused and error.status in _WRONG:
                raise CommandError(text) from error
            if error.status in range(300, 400):
                raise CommandError(f"{text}. No redirect is followed: name the server by its own address, with https.") from error
            again = f" Try again in {error.retry_after:.0f} s." if error.retry_after else ""
            self.stderr.write(f"{text}{again}")
            raise Exit(NO if refused else OURS) from error

    def pages(self, path: str, params: dict[str, Any], most: int) -> Iterator[Any]:
        """The rows of a listing, at most so many."""
        cursor = ""
        while most > 0:
            answer = self.ask("GET", path, {**params, "limit": min(most, 100), "cursor": cursor})
            yield from answer["items"][:most]
            most, cursor = most - len(answer["items"]), answer["next"]
            if not cursor or not answer["items"]:
                return

    def show(self, answer: Any, options: dict[str, Any], lines: Callable[[Any], Iterator[str]]) -> None:
        """Print an answer as JSON, or its lines."""
        if options["json"]:
            self.stdout.write(json.dumps(answer, indent=1))
            return
        for line in lines(answer):
            self.stdout.write(printable(line))


def run_id(typed: str) -> str:
    """The id of a run, from what was typed: the id, or the address of its page."""
    try:
        return str(UUID(typed.rstrip("/").rpartition("/")[2]))
    except ValueError:
        raise CommandError(f"Invalid run {typed!r}: expected its id or the URL of its page. See: cc-ci runs") from None


def one_line(run: dict[str, Any]) -> str:
    """A run in one line."""
    pull = f"#{run['pull_request']}" if run["pull_request"] else ""
    return f"{run['id']}  {run['state']:<17} {run['created_at'][:16]}  {run['repository']}{pull}  {run['sha'][:10]}"


def described(run: dict[str, Any]) -> Iterator[str]:
    """A run in several lines."""
    yield one_line(run)
    if run["reason"]:
        yield run["reason"]
    if run["level"] is not None:
        yield f"Level {run['level']} of 5"
    for stage in run.get("results", []):
        good = sum(case["status"] == "passed" for case in stage["cases"])
        tests = f"  {good} of {len(stage['cases'])} tests passed" if stage["cases"] else ""
        yield f"  {stage['name']:<8} {stage['status']:<10} {stage['seconds']:.1f} s{tests}"
        for case in stage["cases"]:
            if case["status"] in ("failed", "errored"):
                yield f"    {case['file']}: {case['name']}: {case['message']}"
    yield run["url"]


def exit_code(state: str) -> int:
    """The exit code for a run's last state: 0 passed, 1 failed, 2 without a verdict on the recipe."""
    return {"passed": 0, "failed": NO, "timed_out": NO}.get(state, OURS)
