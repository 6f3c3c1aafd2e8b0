"""The doors of the tests' sandbox: to the app, to the provider that was lent to the run, and to nothing else."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from infra.deployers import probe
from infra.deployers.probe import Address, connect_unix
from runs.harness.certificate import Certificate
from runs.harness.doors import Doors, Origin
from runs.harness.oidc import Provider, environment
from runs.harness.sandbox_gateway import SandboxGateway
from tests.runs.harness.keycloak import Keycloak, keycloak
from tests.runs.harness.test_owntests import Place, with_tests

pytestmark = pytest.mark.slow(0.2)

NAME = "sso.example.org"


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that leads the harness to this machine."""
    before = socket.getaddrinfo

    def found(host: str, *rest: Any, **more: Any) -> Any:
        return before("127.0.0.1" if host == NAME else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return NAME


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[int]:
    """Something else on this machine."""

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):  # nobody came
            listener.accept()[0].sendall(b"hello")

    with socket.create_server((address, 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener], daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:  # closing it does not wake whoever accepts, and another test may get its number
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def passes(tmp_path: Path, text: str, lent: dict[str, str]) -> None:
    place = Place(with_tests(tmp_path, {"tests/test_it.py": text}), tmp_path / "place")
    place.context.lent = lent
    outcome = place.run("custom")
    assert outcome.status == "passed", [(case.name, case.message, case.output[-1500:]) for case in outcome.cases]


def lent(there: Keycloak) -> dict[str, str]:
    return environment(Provider(there.url, there.user, there.password, "here").create(uuid.uuid4().hex, "app.localhost"))


TESTS = """
import socket
from urllib.parse import urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
import base64


def test_a_login_with_user_and_password(oidc):
    provider = requests.get(f"{oidc.issuer}/.well-known/openid-configuration", timeout=240).json()
    assert provider["issuer"] == oidc.issuer
    form = {"grant_type": "password", "client_id": oidc.client_id, "client_secret": oidc.client_secret}
    form |= {"username": oidc.user, "password": oidc.password}
    with requests.Session() as session:  # several requests on one connection
        for _ in range(3):
            assert session.post(provider["token_endpoint"], data=form, timeout=240).json()["access_token"]


def test_a_code_is_given_and_its_token_is_signed(oidc):
    endpoint, uri = f"{oidc.issuer}/protocol/openid-connect", "https://app.localhost/callback"
    query = {"response_type": "code", "scope": "openid", "client_id": oidc.client_id, "redirect_uri": uri, "nonce": "n"}
    form = {"username": oidc.user, "password": oidc.password}
    answer = requests.post(f"{endpoint}/auth", params=query, data=form, allow_redirects=False, timeout=240)
    assert answer.headers["Location"].startswith(uri + "?code=")
    code = answer.headers["Location"].partition("code=")[2].partition("&")[0]
    form = {"grant_type": "authorization_code", "client_id": oidc.client_id, "client_secret": oidc.client_secret}
    answer = requests.post(f"{endpoint}/token", data={**form, "code": code, "redirect_uri": uri}, timeout=240)
    head, claims, signature = answer.json()["id_token"].split(".")
    decoded = lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    [key] = requests.get(f"{endpoint}/certs", timeout=240).json()["keys"]
    n, e = (int.from_bytes(decoded(key[name]), "big") for name in ("n", "e"))
    public = rsa.RSAPublicNumbers(e, n).public_key()
    public.verify(decoded(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    again = requests.post(f"{endpoint}/token", data={**form, "code": code, "redirect_uri": uri}, timeout=240)
    assert again.status_code == 400


def test_another_host_behind_the_same_address_is_not_asked_for(oidc):
    answer = requests.get(f"{oidc.issuer}/.well-known/openid-configuration", headers={"Host": "intranet.example.org"}, timeout=60)
    assert answer.status_code == 200  # it was asked under its own name all the same
    there = urlsplit(oidc.issuer)
    if there.scheme == "http":
        with socket.create_connection((there.hostname, there.port), timeout=240) as stream:
            stream.sendall(b"GET http://intranet.example.org/ HTTP/1.1\\r\\nHost: intranet.example.org\\r\\n\\r\\n")
            assert stream.recv(100).startswith(b"HTTP/1.1 400")


def test_another_realm_is_not_asked_for(oidc):
    there = urlsplit(oidc.issuer)
    for path in ("/admin/realms", "/realms/master/protocol/openid-connect/token"):
        answer = requests.post(f"{there.scheme}://{there.netloc}{path}", data={"a": "b" * 100_000}, timeout=240)
        assert answer.status_code == 403 and f"not {path}." in answer.text


@pytest.mark.parametrize("host", ["HOST", "127.0.0.1", "127.0.0.2", "192.0.2.7"])
def test_nothing_else_is_there(host):
    with pytest.raises(OSError):
        socket.create_connection((host, OTHER), timeout=2)
"""


@pytest.mark.parametrize("how", ["loopback", "address", "name", "tls"])
def test_the_provider_is_reached_from_the_sandbox_and_nothing_else(
    how: str, tmp_path: Path, nearby: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _own_address() if how == "address" else "127.0.0.1"
    host = {"loopback": "127.0.0.1", "address": address}.get(how, nearby)
    with keycloak(host, address) as there, listening(address) as other:
        given, asked = lent(there), there
        if how == "tls":
            shown = Certificate.made([nearby])
            trusted = tmp_path / "trusted.pem"
            trusted.write_bytes(shown.certificate)
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            with keycloak(host, address, shown.server_context()) as asked:
                asked.realms, asked.clients, asked.users = there.realms, there.clients, there.users
                given["OIDC_ISSUER"] = f"{asked.url}/realms/{given['OIDC_REALM']}"
                passes(tmp_path, TESTS.replace("OTHER", str(other)).replace("HOST", host), given)
        else:
            passes(tmp_path, TESTS.replace("OTHER", str(other)).replace("HOST", host), given)
        assert {name for name in asked.hosts if name} == {asked.url.partition("://")[2]}


def _own_address() -> str:
    """One of this machine that is not loopback's, which nothing is sent to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        try:
            stream.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        return str(stream.getsockname()[0])


def test_without_a_provider_there_is_no_such_door(tmp_path: Path) -> None:
    with keycloak() as there:
        given = lent(there)
        text = """
import os, socket, json
def test_closed():
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.environ["CC_CI_GATE"])
        stream.sendall(b'{"to": "oidc"}' + bytes([10]))
        assert "no provider was lent" in json.loads(stream.makefile().readline())["error"]
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=2)
    except OSError:
        return
    raise AssertionError("reached")
"""
        asked = len(there.asked)
        passes(tmp_path, text.replace("PORT", there.url.rpartition(":")[2]), {})
        assert given and len(there.asked) == asked


def test_a_provider_with_another_certificate_is_not_spoken_to(tmp_path: Path, nearby: str) -> None:
    with keycloak(nearby, tls=Certificate.made([nearby]).server_context()) as there:
        deployer: Any = None
        doors = Doors("a.example.com", None, True, Origin.of(there.url))
        path = tmp_path / "gate.sock"
        trusted = ssl.create_default_context(cadata=doors.certificate.certificate.decode())
        with SandboxGateway(path, deployer, "a.example.com", doors), connect_unix(str(path), 240) as stream:
            stream.sendall(b'{"to": "oidc"}\n')
            with trusted.wrap_socket(stream, server_hostname=nearby) as tls:
                tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert tls.recv(100) == b""
        assert there.asked == []


class _Proxied:
    """A deployer whose app is behind a proxy at a port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def address(self) -> Address:
        return Address("127.0.0.1", self._port, proxied=True)


@pytest.mark.parametrize("usual", [True, False])
def test_the_proxys_https_is_asked_only_beside_its_usual_port(
    usual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At port 443 of a machine where the proxy has another port there is somebody else."""
    certificate = Certificate.made(["a.example.com"])
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as secure:

        def answer() -> None:
            with suppress(OSError), certificate.server_context().wrap_socket(secure.accept()[0], server_side=True) as stream:
                stream.recv(1000)
                stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setattr(probe, "HTTP_PORT", port if usual else 80)
        monkeypatch.setattr(probe, "HTTPS_PORT", secure.getsockname()[1])
        deployer: Any = _Proxied(port)
        path = tmp_path / "gate.sock"
        with SandboxGateway(path, deployer, "a.example.com"), connect_unix(str(path), 240) as stream:
            stream.sendall(b'{"to": "app", "tls": true}\n')
            if usual:
                with probe.unverified().wrap_socket(stream, server_hostname="a.example.com") as tls:
                    tls.sendall(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
                    assert tls.recv(100).startswith(b"HTTP/1.1 200 OK")
            else:
                assert stream.recv(1) == b""
        secure.shutdown(socket.SHUT_RDWR)
        thread.join(240)


def test_a_body_that_the_provider_leaves_unread_is_no_request(tmp_path: Path) -> None:
    """A server that answers without having read it takes the rest for the next request of the connection."""
    asked: list[str] = []

    class Careless(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.headers['Host']}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    inner = b"GET /realms/x/a HTTP/1.1\r\nHost: other\r\n\r\n"
    deployer: Any = None
    path = tmp_path / "gate.sock"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"127.0.0.1:{server.server_port}"
        with SandboxGateway(
            path, deployer, "a.example.com", Doors("a.example.com", None, True, Origin.of(f"http://{own}/realms/x"))
        ):
            for method, status in ((b"GET", b"400"), (b"POST", b"200")):
                with connect_unix(str(path), 240) as stream:
                    head = b"%s /realms/x/a HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
                    stream.sendall(b'{"to": "oidc"}\n' + head % (method, len(inner)) + inner)
                    answer = b"".join(iter(lambda: stream.recv(1 << 16), b""))
                assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1
        server.shutdown()
    assert asked == [f"POST {own}"]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://sso.example.org/realms/x", ("https", "sso.example.org", 443, "sso.example.org")),
        ("http://SSO.example.org:8080/auth", ("http", "sso.example.org", 8080, "sso.example.org:8080")),
        ("http://[fd00::1]:8080/", ("http", "fd00::1", 8080, "[fd00::1]:8080")),
        ("http://10.0.0.7:80/", ("http", "10.0.0.7", 80, "10.0.0.7")),
        ("", None),
        ("ftp://sso.example.org/", None),
        ("https://sso.example.org:x/", None),
        ("https:///x", None),
    ],
)
def test_where_a_provider_is(url: str, origin: tuple[str, str, int, str] | None) -> None:
    found = Origin.of(url)
    assert (found and (found.scheme, found.host, found.port, found.netloc)) == origin


def test_which_doors_there_are() -> None:
    def ports(address: Address | None, domain: str = "a.example.com", isolated: bool = True) -> list[tuple[Any, ...]]:
        doors = Doors(domain, address, isolated, Origin.of("https://sso.example.org/"))
        return [(door["ports"][0], door.get("named", "")) for door in doors.config()]

    direct = [(80, ""), (443, "https://a.example.com"), (443, "")]
    assert ports(Address("10.0.0.7", 8080)) == direct
    assert ports(Address("10.0.0.7", 443, tls=True, proxied=True)) == direct
    assert ports(Address("10.0.0.7", 80, proxied=True)) == [(80, "http://a.example.com"), (443, ""), (443, "")]
    assert ports(Address("10.0.0.7", 8080, proxied=True)) == [(80, "http://a.example.com"), (443, "")]
    assert ports(None) == [(443, "")]
    assert ports(Address("10.0.0.7", 8080), isolated=False) == [(0, "https://a.example.com")]
    assert ports(Address("127.0.0.1", 8080, given=True), "127.0.0.1") == [(0, "http://127.0.0.1"), (443, "")]
