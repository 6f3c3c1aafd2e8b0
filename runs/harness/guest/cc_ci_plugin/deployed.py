"""The deployed app, as a test sees it: over the web, and through the harness's gateway."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests

#: Responses of a proxy whose app is still starting.
_NOT_YET = (502, 503, 504)
_PROXYS_404 = "404 page not found"
_LONGEST_ANSWER = 4 << 20
_MOST_HOPS = 10
_OF_THE_WEB = (("http", None), ("http", 80), ("https", None), ("https", 443))


@dataclass(frozen=True)
class Done:
    """The result of a command run inside a service."""

    code: int
    output: str


@dataclass(frozen=True)
class Service:
    """One service in its current state. `health` is empty for one without a health check."""

    name: str
    wanted: int
    running: int
    health: str
    image: str


class _Session(requests.Session):
    """Follows redirects within the app, whatever it calls itself, but to no other host."""

    def __init__(self, url: str, domain: str) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        self.max_redirects = _MOST_HOPS
        self._url, self._domain = urlsplit(url), domain.lower()

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if not target or not self._url.netloc or self._url.hostname == self._domain:
            return target
        parts = urlsplit(urljoin(resp.url, target))  # its own name does not resolve here
        if parts.hostname == self._domain and (parts.scheme, parts.port) in _OF_THE_WEB:
            return parts._replace(scheme=self._url.scheme, netloc=self._url.netloc).geturl()
        return target

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        host = urlsplit(prepared_request.url or "").hostname
        if host not in (self._url.hostname, self._domain):
            prepared_request.headers.pop("Host", None)  # the app's


class App:
    """The deployed app.

    `url`: where it answers (without a trailing slash; empty for a recipe without a web port); `domain`: its host name.
    """

    def __init__(self, url: str, domain: str, gate: str, wait: float) -> None:
        self.url = url
        self.domain = domain or (urlsplit(url).hostname or "")
        self._host = domain
        self._gate = gate
        self._wait = wait
        self._session = _Session(url, self.domain)

    @property
    def named_url(self) -> str:
        """Its URL with its own name, as the app itself uses it; a browser resolves that name to the app."""
        return f"{urlsplit(self.url).scheme}://{self._host}" if self.url and self._host else self.url

    def get(self, path: str = "/", **options: Any) -> requests.Response:
        """GET a path or URL. Waits while the app starts. Takes the options of `requests`, and `wait` in seconds."""
        return self.request("GET", path, **options)

    def post(self, path: str = "/", **options: Any) -> requests.Response:
        """POST to a path or URL; otherwise like `get`."""
        return self.request("POST", path, **options)

    def request(self, method: str, path: str = "/", *, wait: float | None = None, **options: Any) -> requests.Response:
        """Send a request; retry while the app refuses connections, or its proxy answers 502, 503, 504 or its own 404.

        After `wait` seconds (default: 60) the last answer is returned, or the last error raised.
        """
        if not self.url:
            pytest.fail("This recipe has no web port, so there is no URL to request.")
        until = time.monotonic() + (self._wait if wait is None else wait)
        headers = {**(options.pop("headers", None) or {})}
        if self._host and not any(key.lower() == "host" for key in headers):
            headers["Host"] = self._host
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
        """Run a command inside a service: a list of words, or one line for its shell. `timeout` is in seconds."""
        arguments = ["sh", "-c", command] if isinstance(command, str) else list(command)
        request = {"do": "exec", "service": service, "command": arguments, "timeout": timeout}
        answer = self._ask("app.exec", request, timeout + 15)
        return Done(int(answer["code"]), str(answer["output"]))

    def logs(self, service: str = "app", lines: int = 50) -> str:
        """The last lines that a service printed."""
        return str(self._ask("app.logs", {"do": "logs", "service": service, "lines": lines}, 30)["output"])

    def services(self) -> dict[str, Service]:
        """Every service of the deployment by name, in its current state."""
        return {str(service["name"]): Service(**service) for service in self._state("app.services")["services"]}

    @property
    def version(self) -> str:
        """The version in the deployment's label; empty without such a label."""
        return str(self._state("app.version")["version"])

    @property
    def ports(self) -> Mapping[str, int]:
        """The published ports: `"app:22/tcp"` -> the port on the machine, which differs in each run."""
        return {str(name): int(port) for name, port in self._state("app.ports")["ports"].items()}

    def connect(self, port: str, timeout: float = 10) -> socket.socket:
        """A connection to a published port, named as in `ports`; the only way to it from the tests' sandbox."""
        stream, answer = self._open("app.connect", {"to": port}, timeout)
        try:
            _check("app.connect", answer)
        except BaseException:
            stream.close()
            raise
        return stream

    def _state(self, what: str) -> dict[str, Any]:
        return self._ask(what, {"do": "state"}, 60)

    def _ask(self, what: str, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        stream, answer = self._open(what, request, timeout)
        stream.close()
        _check(what, answer)
        return answer

    def _open(self, what: str, request: dict[str, Any], timeout: float) -> tuple[socket.socket, dict[str, Any]]:
        """A connection to the gateway, and its answer to the request: one line of JSON."""
        if not self._gate:
            pytest.skip(f"{what} is not available: this app was not deployed by cc-ci. Run `cc-ci test .` to have it deployed.")
        folder = os.open(os.path.dirname(self._gate), os.O_PATH | os.O_CLOEXEC)  # noqa: PTH120
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(timeout)
            stream.connect(f"/proc/self/fd/{folder}/{os.path.basename(self._gate)}")  # noqa: PTH119
            stream.sendall((json.dumps(request) + "\n").encode())
            # Unbuffered: on a connection to a port, the bytes after the line belong to the service.
            with stream.makefile("rb", buffering=0) as answers:
                answer: dict[str, Any] = json.loads(answers.readline(_LONGEST_ANSWER))
        except BaseException:
            stream.close()
            raise
        finally:
            os.close(folder)
        return stream, answer


def _check(what: str, answer: dict[str, Any]) -> None:
    if "cannot" in answer:
        pytest.skip(f"{what} is not available: {answer['cannot']}")
    if "error" in answer:
        pytest.fail(f"The harness refused: {answer['error']}")


def _starting(response: requests.Response) -> bool:
    if response.status_code in _NOT_YET:
        return True
    return response.status_code == 404 and response.text.strip() == _PROXYS_404
