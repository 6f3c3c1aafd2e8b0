"""A recorded spec as it is given back: ids of now by the names of then; and the socket it is given to."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from infra.deployers.docker import api, service_specs
from infra.deployers.docker.api import inspect
from infra.deployers.docker.cli import LABEL_DEPLOYMENT, away
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, probe
from infra.deployers.swarm import convergence, persistent
from infra.deployers.swarm.persistent import PersistentDeployer

pytestmark = pytest.mark.slow(0.2)

SPEC: dict[str, Any] = {
    "Name": "s_app",
    "Labels": {"com.docker.stack.namespace": "s", LABEL_DEPLOYMENT: "u1-new"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "app:1",
            "Env": ["HAND=1"],
            "Configs": [{"ConfigID": "old-config", "ConfigName": "s_conf_v1", "File": {"Name": "/conf"}}],
            "Secrets": [{"SecretID": "old-secret", "SecretName": "s_key_v1", "File": {"Name": "key"}}],
        },
        "Networks": [{"Target": "old-net", "Aliases": ["app"]}, {"Target": "proxy-id"}],
        "ForceUpdate": 2,
    },
    "Mode": {"Replicated": {"Replicas": 1}},
}
THEN = {"old-net": "s_default", "proxy-id": "proxy"}
NOW = service_specs.Ids({"s_default": "new-net", "proxy": "proxy-id"}, {"s_conf_v1": "new-config"}, {"s_key_v1": "new-secret"})


def test_names_stay_and_ids_are_those_of_now() -> None:
    given = copy.deepcopy(SPEC)
    found = service_specs.of_now(given, THEN, NOW, "u2-old")
    assert given == SPEC, "what was recorded is left as it is"
    assert [network["Target"] for network in found["TaskTemplate"]["Networks"]] == ["new-net", "proxy-id"]
    assert found["TaskTemplate"]["Networks"][0]["Aliases"] == ["app"]
    container = found["TaskTemplate"]["ContainerSpec"]
    assert (container["Configs"][0]["ConfigID"], container["Secrets"][0]["SecretID"]) == ("new-config", "new-secret")
    assert container["Env"] == ["HAND=1"]
    assert found["Labels"] == {"com.docker.stack.namespace": "s", LABEL_DEPLOYMENT: "u2-old"}
    assert LABEL_DEPLOYMENT not in service_specs.of_now(SPEC, THEN, NOW, "")["Labels"]


def test_the_fingerprint_is_the_one_of_then() -> None:
    found = service_specs.of_now(SPEC, THEN, NOW, "u2-old")
    names = {"new-net": "s_default", "proxy-id": "proxy"}
    assert convergence.fingerprint([{"Spec": found}], names) == convergence.fingerprint([{"Spec": SPEC}], THEN)
    other = service_specs.of_now({**SPEC, "Mode": {"Replicated": {"Replicas": 2}}}, THEN, NOW, "")
    assert convergence.fingerprint([{"Spec": other}], names) != convergence.fingerprint([{"Spec": SPEC}], THEN)


def test_what_is_gone_is_named() -> None:
    assert service_specs.missing(SPEC, THEN, NOW) == []
    assert service_specs.missing(SPEC, THEN, service_specs.Ids()) == [
        "network proxy",
        "network s_default",
        "config s_conf_v1",
        "secret s_key_v1",
    ]
    assert service_specs.missing({"Name": "bare"}, {}, service_specs.Ids()) == []


def test_a_network_is_made_again_as_it_was_but_for_its_number() -> None:
    inspected = {
        "Name": "s_default",
        "Id": "old-net",
        "Driver": "overlay",
        "Attachable": True,
        "Options": {"encrypted": "", "com.docker.network.driver.overlay.vxlanid_list": "4097"},
        "Labels": {"com.docker.stack.namespace": "s"},
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.0.7.0/24", "Gateway": "10.0.7.1"}]},
    }
    found = service_specs.network(inspected)
    assert found["Options"] == {"encrypted": ""} and found["Attachable"] and not found["Internal"]
    assert found["IPAM"]["Config"] == [{"Subnet": "10.0.7.0/24", "Gateway": "10.0.7.1"}]
    assert service_specs.network({"Name": "n", "Options": None, "Labels": None, "IPAM": None})["IPAM"] == {
        "Driver": "default",
        "Config": [],
    }


@pytest.mark.parametrize(
    ("said", "is_away"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", True),
        ('error during connect: Get "http://x/v1.41/services": EOF', True),
        ("Error response from daemon: rpc error: code = Unknown desc = The swarm does not have a leader.", True),
        ("Error response from daemon: This node is not a swarm manager.", True),
        ("Error: no such service: app", False),
        ("services.app.image must be a string", False),
    ],
)
def test_a_docker_that_is_away_is_told_from_one_that_says_no(said: str, is_away: bool) -> None:
    assert away(said) is is_away


# -- the socket ----


class Daemon(BaseHTTPRequestHandler):
    asked: list[tuple[str, Any]] = []

    def do_GET(self) -> None:
        what = self.path.removesuffix("/json").rpartition("/")[2]
        self.send_response({"gone": 404, "broken": 503}.get(what, 200))
        self.end_headers()
        self.wfile.write(b'{"message": "none"}' if what == "gone" else b"busy")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        refused = body.get("Name") == "refused"
        answer = json.dumps({"message": "update out of sequence"} if refused else {"ID": "new"}).encode()
        self.send_response(500 if refused else 201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def address_string(self) -> str:
        return "here"

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    Daemon.asked = []
    with ThreadingUnixStreamServer(str(path), Daemon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield path
        server.shutdown()


def test_a_request_goes_over_the_socket(daemon: Path) -> None:
    assert api.post("/services/x/update", {"Name": "a"}, version="12 3") == {"ID": "new"}
    assert Daemon.asked == [("/services/x/update?version=12%203", {"Name": "a"})]
    with pytest.raises(DeployError, match="500: update out of sequence") as refused:
        api.post("/services/create", {"Name": "refused"})
    assert refused.value.kind == "tool_failed"


def test_a_socket_that_nobody_listens_on_says_so(daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{daemon}-gone")
    with pytest.raises(DeployError, match=r"Docker's socket .*gone") as error:
        api.post("/services/create", {})
    assert error.value.kind == "tool_failed" and away(str(error.value))
    monkeypatch.setenv("DOCKER_HOST", "ssh://host")
    assert api.socket_path() == ""
    with pytest.raises(DeployError, match="not reached through a unix socket"):
        api.post("/services/create", {})


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a daemon in Docker's place that answers one request with these bytes, some at once and some one by one."""
    path, over = tmp_path / "docker.sock", threading.Event()

    def answer(listener: socket.socket, at_once: bytes, dripping: bytes, holds: bool) -> None:
        with suppress(OSError), listener, listener.accept()[0] as stream:
            stream.recv(65536)
            stream.sendall(at_once)
            for byte in dripping:
                over.wait(0.2)
                stream.sendall(bytes([byte]))
            if not holds:
                stream.shutdown(socket.SHUT_WR)
            over.wait(100)

    def start(at_once: bytes, dripping: bytes = b"", holds: bool = True) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        threading.Thread(target=answer, args=(listener, at_once, dripping, holds), daemon=True).start()

    yield start
    over.set()


BEGUN = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("at_once", "dripping"),
    [
        (b"", b""),
        (b"", b" " * 500),
        (BEGUN, b""),
        (BEGUN + b"X: ", b"a" * 500),
        (BEGUN + b"Content-Length: 500\r\n\r\n", b" " * 498 + b"[]"),
        (BEGUN + b"Connection: close\r\n\r\n", b" " * 498 + b"[]"),
        (BEGUN + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n", b" " * 500),
    ],
)
def test_a_daemon_that_drips_or_is_silent_is_not_waited_for(
    at_once: bytes, dripping: bytes, answering: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(at_once, dripping)
    monkeypatch.setattr(api, "_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(DeployError, match=r"Docker's socket .* did not answer /services within 0\.3 s\.") as error:
        api.listed("service")
    assert error.value.kind == "tool_failed" and away(str(error.value))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("said", [b"[" * 500_000, b'{"a":' * 500_000, b"busy", b""])
def test_an_answer_that_is_no_json_is_a_failure_of_the_tool(said: bytes, answering: Callable[..., None]) -> None:
    answering(BEGUN + b"Content-Length: %d\r\n\r\n" % len(said) + said)
    with pytest.raises(DeployError, match="not valid JSON") as error:
        api.listed("service")
    assert error.value.kind == "tool_failed"


def test_tasks_of_a_service_that_has_gone_are_none(answering: Callable[..., None]) -> None:
    answering(b'HTTP/1.1 404 Not Found\r\nContent-Length: 21\r\n\r\n{"message": "no such"}')
    assert api.listed("task", service=["gone"]) == []


def test_an_app_that_drips_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            with suppress(OSError), listener.accept()[0] as stream:
                stream.sendall(BEGUN + b"Connection: close\r\nContent-Length: 500\r\n\r\n")
                for _ in range(500):
                    time.sleep(0.2)
                    stream.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        assert probe(Address(*listener.getsockname()), timeout=0.3)
        assert time.monotonic() - began < 60


def test_half_an_answer_is_none(answering: Callable[..., None]) -> None:
    answering(BEGUN + b'Content-Length: 500\r\n\r\n{"ID":', holds=False)
    with pytest.raises(DeployError, match="closed the connection before the end of its answer to /services/create"):
        api.post("/services/create", {})


@pytest.mark.parametrize("kind", ["service", "volume", "image", "container"])
def test_a_docker_that_is_away_is_not_an_empty_one(daemon: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert inspect(kind, ["gone"]) == []
    for name in ("broken", "nonsense"):
        with pytest.raises(DeployError):
            inspect(kind, [name])
    monkeypatch.setenv("DOCKER_HOST", f"unix://{daemon}-gone")
    with pytest.raises(DeployError) as error:
        inspect(kind, ["one"])
    assert away(str(error.value))


# -- a number that Swarm itself raised ----


def written(monkeypatch: pytest.MonkeyPatch, now: dict[str, Any], refusals: int) -> list[str]:
    """The numbers that a write of another spec was tried with, when Swarm refuses the first ones."""
    tried: list[str] = []

    def post(path: str, body: Any, **query: str) -> None:
        tried.append(query["version"])
        if len(tried) <= refusals:
            raise DeployError("tool_failed", "Docker refused: rpc error: update out of sequence")

    monkeypatch.setattr(api, "post", post)
    monkeypatch.setattr(persistent, "inspect", lambda kind, names: [{**now, "Version": {"Index": 7 + len(tried)}}])
    PersistentDeployer._write(None, {"Name": "s_app"}, {"ID": "x", "Spec": SPEC, "Version": {"Index": 7}})  # type: ignore[arg-type]
    return tried


def test_a_number_that_swarm_itself_raised_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(monkeypatch, {"ID": "x", "Spec": SPEC}, refusals=2) == ["7", "8", "9"]
    with pytest.raises(DeployError, match="out of sequence"):
        written(monkeypatch, {"ID": "x", "Spec": SPEC}, refusals=99)


def test_a_spec_that_a_hand_changed_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeployError, match="out of sequence"):
        written(monkeypatch, {"ID": "x", "Spec": {**SPEC, "Labels": {"by": "hand"}}}, refusals=1)
