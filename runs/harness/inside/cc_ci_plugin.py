"""The pytest plugin for a recipe's own tests: the fixture `app`. One file, which needs pytest and requests only.

See docs/write-tests.md.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import pytest
import requests

#: Answers of a proxy whose app is still starting.
_NOT_YET = (502, 503, 504)
_PROXYS_404 = "404 page not found"


@dataclass(frozen=True)
class Done:
    """A command that ran inside a service."""

    code: int
    output: str


class App:
    """The deployed app.

    `url` is where it answers (no slash at the end; empty for a recipe without a web port), `domain` its host name.
    """

    def __init__(self, url: str, domain: str, gate: str, wait: float) -> None:
        self.url = url
        self.domain = domain
        self._gate = gate
        self._wait = wait
        self._session = requests.Session()
        self._session.trust_env = False

    def get(self, path: str = "/", **options: Any) -> requests.Response:
        """GET a path or a URL. Waits while the app starts; options are those of `requests`, and `wait` in seconds."""
        return self.request("GET", path, **options)

    def post(self, path: str = "/", **options: Any) -> requests.Response:
        """POST to a path or a URL, else like `get`."""
        return self.request("POST", path, **options)

    def request(self, method: str, path: str = "/", *, wait: float | None = None, **options: Any) -> requests.Response:
        """Send a request; while the app refuses connections or its proxy says 502, 503, 504 or its own 404, try again.

        After `wait` seconds (60 unless told) the last answer is returned, or the last error raised.
        """
        if not self.url:
            pytest.fail("This recipe has no web port, so there is no URL to ask.")
        until = time.monotonic() + (self._wait if wait is None else wait)
        headers = {**(options.pop("headers", None) or {})}
        if self.domain and not any(key.lower() == "host" for key in headers):
            headers["Host"] = self.domain
        options.setdefault("timeout", 10)
        pause = 0.1
        while True:
            try:
                response = self._session.request(method, urljoin(self.url + "/", path), headers=headers, **options)
                if not _starting(response) or time.monotonic() > until:
                    return response
            except (requests.ConnectionError, requests.Timeout):
                if time.monotonic() > until:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, 2)

    def exec(self, command: str | Sequence[str], service: str = "app", timeout: float = 60) -> Done:
        """Run a command inside a service: a list of words, or one line for its shell. Seconds until it is given up."""
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        answer = self._ask({"do": "exec", "service": service, "command": words, "timeout": timeout}, timeout + 15)
        return Done(int(answer["code"]), str(answer["output"]))

    def logs(self, service: str = "app", lines: int = 50) -> str:
        """The last lines that a service printed."""
        return str(self._ask({"do": "logs", "service": service, "lines": lines}, 30)["output"])

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        folder = os.open(os.path.dirname(self._gate), os.O_PATH | os.O_CLOEXEC)  # noqa: PTH120
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                stream.settimeout(timeout)
                stream.connect(f"/proc/self/fd/{folder}/{os.path.basename(self._gate)}")  # noqa: PTH119
                stream.sendall((json.dumps(request) + "\n").encode())
                answer: dict[str, Any] = json.loads(stream.makefile("r").readline())
        finally:
            os.close(folder)
        if "error" in answer:
            pytest.fail(f"The harness refused: {answer['error']}")
        return answer


def _starting(response: requests.Response) -> bool:
    if response.status_code in _NOT_YET:
        return True
    return response.status_code == 404 and response.text.strip() == _PROXYS_404


@pytest.fixture(scope="session")
def app() -> App:
    """The deployed app, the same for all tests of a stage."""
    return App(
        url=os.environ.get("CC_CI_URL", ""),
        domain=os.environ.get("CC_CI_DOMAIN", ""),
        gate=os.environ.get("CC_CI_GATE", ""),
        wait=float(os.environ.get("CC_CI_WAIT", "60")),
    )
