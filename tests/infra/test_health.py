"""Whether an app is well: every sentence against it, and the probes on real sockets."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from infra.config.schema import Check
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address
from infra.deployers.swarm.persistent import ServiceState
from infra.runtime import health

WELL = ServiceState("f", mark="u1-new", version="2", image="i", update="completed", running=1, tasks=("t",))


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {"/well": (200, "all is well"), "/ill": (503, "no"), "/gone": (404, "404 page not found")}
        status, body = pages.get(self.path) or (302, "")
        self.send_response(status)
        if status == 302:
            self.send_header("Location", {"/to-ill": "/ill", "/to-well": "https://x.example.org/well"}.get(self.path, self.path))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


class Reached:
    def __init__(self, address: Address | None) -> None:
        self._address = address

    def address(self) -> Address | None:
        return self._address

    def execute(self, service: str, command: Sequence[str], timeout: float = 60) -> tuple[int, str]:
        if service != "app":
            raise DeployError("tool_failed", f"No container of {service} is running.")
        return (0, "") if command == ("true",) else (7, "it hurts")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("check", "proxied", "said"),
    [
        ({"http": "/well"}, False, ""),
        ({"http": "/well", "status": 200, "body": "is well"}, False, ""),
        ({"http": "/well", "status": [201, 204]}, False, "returned 200, expected 201 or 204"),
        ({"http": "/well", "body": "is ill"}, False, "the answer does not contain 'is ill'"),
        ({"http": "/ill"}, False, "returned 503"),
        ({"http": "/ill", "status": 503}, False, ""),
        ({"http": "/gone"}, False, ""),
        ({"http": "/gone", "status": 404}, True, "the proxy has no route for this host"),
        ({"http": "/to-well", "body": "is well"}, False, ""),
        ({"http": "/to-ill"}, False, "GET /to-ill redirected to https://x.example.org/ill, which returned 503"),
        ({"http": "/to-ill", "status": 302}, False, ""),
        ({"http": "/round"}, False, "GET /round redirects in a loop"),
        ({"command": ["true"]}, False, ""),
        ({"command": ["false"]}, False, "exited with 7: it hurts"),
        ({"command": ["true"], "service": "db"}, False, "No container of db is running."),
    ],
)
def test_a_probe(port: int, check: dict[str, Any], proxied: bool, said: str) -> None:
    (sample,) = health.ask(Reached(Address("127.0.0.1", port, proxied=proxied)), [Check(**check)], "x.example.org")
    assert sample.ok is not bool(said), sample
    assert said in sample.said


def test_a_tcp_probe_and_nobody_there(port: int) -> None:
    checks = [Check(tcp=f"127.0.0.1:{port}"), Check(tcp="127.0.0.1:1"), Check(http="/well", seconds=1)]
    samples = health.ask(Reached(Address("127.0.0.1", 1)), checks, "x.example.org")
    assert [sample.ok for sample in samples] == [True, False, False]
    assert "cannot connect to" in samples[1].said and "no answer to" in samples[2].said
    (no_port,) = health.ask(Reached(None), [Check(http="/well")], "x")
    assert "no web port" in no_port.said


def test_what_failed_before_is_not_held_against_the_new_version() -> None:
    samples = [health.Sample("a", False, "no"), health.Sample("b", False, "no"), health.Sample("c", True)]
    assert health.worse(samples, {"a": False, "b": True, "c": True}) == ["b: no"]
    assert health.worse(samples, {}) == ["a: no", "b: no"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"running": 0, "problem": "exit 1"}, "app has 0 of 1 replicas (exit 1)"),
        ({"health": "starting"}, "the health check of app is starting"),
        ({"health": "healthy"}, ""),
        ({"update": "updating"}, "the update of app has not finished (updating)"),
        ({"update": "rollback_started"}, "the update of app has not finished (rollback_started)"),
        ({"update": "paused", "message": "task failed"}, "Swarm paused the update of app: task failed"),
        ({"update": "rollback_completed"}, ""),
    ],
)
def test_what_swarm_says_against_a_service(change: dict[str, Any], said: str) -> None:
    assert health.unhealthy({"app": replace(WELL, **change)}) == ([said] if said else [])


def test_nothing_at_all_is_ill() -> None:
    assert health.unhealthy({}) == ["no service runs"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"app": WELL}, ""),
        ({"app": WELL, "db": replace(WELL, version="")}, ""),
        ({}, "service app is missing"),
        ({"app": replace(WELL, version="1")}, "app runs 1 instead of 2"),
        ({"app": replace(WELL, version="")}, "no service has the version 2"),
        ({"app": replace(WELL, mark="u1-old")}, "Swarm rolled app back by itself"),
        (
            {"app": replace(WELL, mark="", update="rollback_completed", message="update rolled back")},
            "by itself (silent rollback): update rolled back",
        ),
    ],
)
def test_where_what_runs_is_not_what_was_deployed(parts: dict[str, ServiceState], said: str) -> None:
    found = health.wrong(parts, "2", "u1-new", ["app"])
    assert bool(found) is bool(said) and said in "".join(found)


def test_the_version_decides_where_no_mark_is_set() -> None:
    unmarked = {"app": replace(WELL, mark="")}
    assert health.wrong(unmarked, "2", "", ["app"]) == []
    assert health.wrong(unmarked, "3", "", ["app"])


def test_a_task_with_another_id_was_started_anew() -> None:
    parts = {"app": replace(WELL, tasks=("t2",), problem="exit 1"), "db": WELL}
    assert health.restarted(parts, {"app": ["t"], "db": ["t"]}) == ["app restarted (exit 1)"]
    assert health.restarted({"app": replace(WELL, tasks=())}, {"app": ["t"]}) == []
