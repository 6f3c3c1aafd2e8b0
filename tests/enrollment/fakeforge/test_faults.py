"""What tests can make go wrong, and what they can see afterwards."""

from __future__ import annotations

import time
from typing import Literal

import pytest
import requests

from enrollment.fakeforge import Fault, Forge, Request, Server
from enrollment.fakeforge.faults import FaultPlan
from tests.enrollment.fakeforge.conftest import Client
from tests.waiting import until

COMMENTS = "/repos/recipes/web/issues/1/comments"


def on_post(fault: Fault) -> FaultPlan:
    return lambda request: fault if request.method == "POST" else None


def bodies(forge: Forge) -> list[str]:
    return [comment.body for comment in forge.comments_of(forge.issue("recipes/web", 1))]


def test_a_status_is_answered_and_nothing_is_done(client: Client, forge: Forge) -> None:
    forge.faults = on_post(Fault(status=429, headers={"Retry-After": "7"}, body="slow down"))
    answer = client.post(COMMENTS, "bot", body="x")
    assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (429, "7", "slow down")
    assert bodies(forge) == []


@pytest.mark.parametrize(("when", "kept"), [("before", []), ("after", ["x"])])
def test_the_connection_closes_before_or_after_the_write(
    client: Client, forge: Forge, when: Literal["before", "after"], kept: list[str]
) -> None:
    forge.faults = on_post(Fault(close=when))
    with pytest.raises(requests.ConnectionError):
        client.post(COMMENTS, "bot", body="x")
    assert bodies(forge) == kept
    assert forge.requests[-1].status == 0


def test_an_answer_that_comes_too_late(client: Client, forge: Forge) -> None:
    forge.faults = on_post(Fault(delay_after=0.3))
    with pytest.raises(requests.Timeout):
        client.session.post(
            client.server.url + "/api/v1" + COMMENTS,
            json={"body": "x"},
            headers={"Authorization": f"token {client.tokens['bot']}"},
            timeout=0.1,
        )
    until(lambda: bodies(forge) == ["x"])


def test_garbage_and_cut_bodies(client: Client, forge: Forge) -> None:
    forge.faults = lambda request: Fault(body="<html>Bad gateway")
    answer = client.get("/version")
    assert (answer.status_code, answer.text) == (200, "<html>Bad gateway")
    forge.faults = lambda request: Fault(cut=5)
    with pytest.raises(requests.RequestException):
        client.get("/version")
    forge.faults = lambda request: Fault(delay=0.1)
    begin = time.monotonic()
    assert client.get("/version").json() == {"version": "1.15"}
    assert time.monotonic() - begin >= 0.1


def test_requests_are_seen(client: Client, forge: Forge) -> None:
    client.get("/repos/issues/search", "bot", type="pulls")
    client.post(COMMENTS, "", body="x")
    one, two = forge.requests
    assert isinstance(one, Request)
    assert (one.method, one.path, one.query, one.user, one.status) == (
        "GET", "/api/v1/repos/issues/search", "type=pulls", "bot", 200,
    )  # fmt: skip
    assert (two.user, two.status, two.body) == ("", 401, b'{"body": "x"}')
    assert one.target == "/api/v1/repos/issues/search?type=pulls" and one.at == forge.clock()


def test_a_stopped_server_cuts_idle_connections(client: Client, server: Server) -> None:
    assert client.get("/version").ok
    server.stop()
    with pytest.raises(requests.ConnectionError):
        client.get("/version")
    server.stop()
