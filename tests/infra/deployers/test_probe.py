"""What the generic check takes for the app's answer: redirections within the app are followed, as a browser would."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from infra.deployers import probe as probe_module
from infra.deployers.context import Context
from infra.deployers.probe import Address, probe
from infra.deployers.readiness import Asker
from runs.harness.certificate import Certificate

DOMAIN = "app.example.com"
ASKED: list[tuple[str, str]] = []


class App(http.server.BaseHTTPRequestHandler):
    """Pages that lead somewhere. `secure`: as the headers say, which is all that an app behind a proxy knows."""

    def do_GET(self) -> None:
        secure = self.headers.get("X-Forwarded-Proto") == "https" and self.headers.get("X-Forwarded-Host") == DOMAIN
        host = self.headers["Host"]
        ASKED.append((self.path, self.headers.get("Cookie", "")))
        if self.path.startswith("/insists/") and not secure:
            return self._lead(301, f"https://{host}{self.path}")
        match self.path.partition("?")[0].split("/")[1:]:
            case ["insists", status] | ["plain", status]:
                return self._say(int(status), "a page")
            case ["stubborn"]:  # believes no header
                return self._lead(301, f"https://{host}/stubborn")
            case ["login"]:
                return self._say(200, "Sign in")
            case ["relative", _]:
                return self._lead(302, "../login?next=%2F#form")
            case ["own"]:
                return self._lead(307, f"http://{DOMAIN.upper()}:80/login")
            case ["cookie"] if "seen=1" in self.headers.get("Cookie", ""):
                return self._say(200, "welcome")
            case ["cookie"]:
                return self._lead(302, "/cookie", "seen=1; Path=/; Secure; HttpOnly")
            case ["elsewhere"]:
                return self._lead(302, "https://sso.example.com/login")
            case ["other-port"]:
                return self._lead(302, f"https://{DOMAIN}:8443/")
            case ["stairs", number]:
                return self._lead(302, f"/stairs/{int(number) + 1}")
            case ["nonsense"]:
                return self._lead(302, "https://[")
            case ["unsendable"]:
                return self._lead(302, "/a b")
            case ["without"]:
                return self._say(304, "")
            case ["broken-behind"]:
                return self._lead(303, "/plain/500")
            case _:
                return self._say(404, "nothing here")

    def _lead(self, status: int, location: str, cookie: str = "") -> None:
        self.send_response(status)
        self.send_header("Location", location)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()

    def _say(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


class Proxy(App):
    """A proxy that believes nobody: it says itself how it was asked."""

    def do_GET(self) -> None:
        del self.headers["X-Forwarded-Proto"]
        self.headers["X-Forwarded-Proto"] = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
        super().do_GET()


@contextmanager
def served(handler: type[App], folder: Path | None = None) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if folder:
            server.socket = Certificate.made([DOMAIN]).server_context().wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(App) as port:
        yield port


def context(*statuses: int) -> Context:
    return Context("0" * 32, "t", "x", Path(), Path(), health_status=statuses)


@pytest.mark.parametrize(
    ("path", "status", "said", "counts"),
    [
        ("/insists/200", 200, "GET /insists/200 returned 200", True),
        ("/insists/500", 500, "GET /insists/500 returned 500", False),
        ("/plain/200", 200, "GET /plain/200 returned 200", True),
        ("/plain/500", 500, "GET /plain/500 returned 500", False),
        ("/relative/x", 200, f"GET /relative/x redirected to https://{DOMAIN}/login?next=%2F, which returned 200", True),
        ("/own", 200, f"GET /own redirected to http://{DOMAIN}/login, which returned 200", True),
        ("/broken-behind", 500, f"GET /broken-behind redirected to https://{DOMAIN}/plain/500, which returned 500", False),
        ("/cookie", 200, f"GET /cookie redirected to https://{DOMAIN}/cookie, which returned 200", True),
        ("/elsewhere", 302, "GET /elsewhere returned 302", True),  # another host is not asked: the app has said something
        ("/other-port", 302, "GET /other-port returned 302", True),
        ("/nonsense", 302, "GET /nonsense returned 302", True),
        ("/unsendable", 302, "GET /unsendable returned 302", True),
        ("/without", 304, "GET /without returned 304", True),
        (
            "/stubborn",
            301,
            f"GET /stubborn redirects in a loop: https://{DOMAIN}/stubborn redirects to https://{DOMAIN}/stubborn, "
            "which was already requested",
            False,
        ),
        (
            "/stairs/1",
            302,
            f"GET /stairs/1 redirects too often: after 10 redirects https://{DOMAIN}/stairs/11 redirects to https://{DOMAIN}/stairs/12",
            False,
        ),
    ],
)
def test_what_stands_behind_a_redirection_is_the_answer(port: int, path: str, status: int, said: str, counts: bool) -> None:
    address = Address("127.0.0.1", port)
    answer = probe(address, DOMAIN, path)
    assert answer
    assert (answer.status, answer.summary(path)) == (status, said)
    assert context().accepts(answer, address) is counts


def test_a_status_that_the_recipe_names_is_an_answer_as_it_is(port: int) -> None:
    address = Address("127.0.0.1", port)
    answer = probe(address, DOMAIN, "/broken-behind", final=(303,))
    assert answer and answer.status == 303
    assert context(303).accepts(answer, address)
    answer = probe(address, DOMAIN, "/relative/x", final=(200,))
    assert answer and context(200).accepts(answer, address)
    answer = probe(address, DOMAIN, "/stubborn", final=(200,))
    assert answer and not context(301).accepts(answer, address)


def test_a_cookie_that_cannot_be_sent_is_not() -> None:
    kept: dict[str, str] = {}
    probe_module._keep(kept, ["a=1; Path=/", "b = 2", "c=\x00", "d=" + "x" * 9000, "e", 'f="q"'])
    assert kept == {"a": "1", "b": "2", "e": "", "f": '"q"'}


@pytest.mark.parametrize(("path", "status", "counts"), [("/insists/200", 200, True), ("/insists/500", 500, False)])
def test_a_proxy_that_believes_nobody_is_followed_to_its_https(
    path: str, status: int, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Proxy) as plain, served(Proxy, tmp_path) as secure:
        monkeypatch.setattr(probe_module, "HTTP_PORT", plain)
        monkeypatch.setattr(probe_module, "HTTPS_PORT", secure)
        address = Address("127.0.0.1", plain, proxied=True)
        answer = probe(address, DOMAIN, path)
        assert answer and (answer.status, answer.led) == (status, (f"https://{DOMAIN}{path}",))
        assert context().accepts(answer, address) is counts


def test_a_proxy_without_https_has_said_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Proxy) as plain:
        monkeypatch.setattr(probe_module, "HTTP_PORT", plain)
        monkeypatch.setattr(probe_module, "HTTPS_PORT", 1)
        address = Address("127.0.0.1", plain, proxied=True)
        answer = probe(address, DOMAIN, "/insists/200")
        assert answer and answer.only_to_https(address) and not context().accepts(answer, address)


@pytest.mark.parametrize("address", [{"proxied": True}, {"given": True}])
def test_beside_another_port_https_is_somebody_elses(
    address: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Proxy) as plain, served(Proxy, tmp_path) as others:
        monkeypatch.setattr(probe_module, "HTTPS_PORT", others)
        ASKED.clear()
        answer = probe(Address("127.0.0.1", plain, **address), DOMAIN, "/insists/200")
        assert answer and (answer.status, answer.led) == (301, ()) and len(ASKED) == 1


@pytest.mark.parametrize("said", [b"-1\r\n", b"2\r\nok\r\n-1\r\n"])
def test_a_chunk_shorter_than_nothing_is_not_read(said: bytes) -> None:
    """Python reads all that comes for one, as long as it comes."""
    sent = 0

    def serve() -> None:
        nonlocal sent
        stream = listener.accept()[0]
        with stream, suppress(OSError):
            stream.recv(1 << 16)
            stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + said)
            while sent < 64 << 20:
                sent += stream.send(b"x" * (1 << 16))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        answer = probe(Address("127.0.0.1", listener.getsockname()[1], given=True), DOMAIN, "/", 5.0)
        thread.join()
    assert answer is None
    assert sent < 64 << 20, "all of it was taken"


def test_an_app_that_never_answers_may_serve_no_web_at_all() -> None:
    asked = context()
    error = Asker(asked).late(Address("127.0.0.1", 1), 1, "")
    assert "did not answer on port 1" in error.message and "set no_web in cc-ci.toml" in error.fix
    asked.app = "proxy"
    assert "cc-ci.toml" not in Asker(asked).late(Address("127.0.0.1", 1), 1, "").fix, "the server's own apps do not read it"
