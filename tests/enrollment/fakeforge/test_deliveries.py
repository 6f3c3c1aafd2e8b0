"""Deliveries to webhooks, held to captured ones of a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from enrollment.fakeforge import Forge, Server, serve
from tests.enrollment.fakeforge.conftest import Client
from tests.enrollment.fakeforge.test_captured import differences, make_world

CAPTURED = Path(__file__).parents[2] / "data" / "gitea" / "deliveries"
COMMENTS = ["issue_comment", "pull_request_comment"]
FORGEJO = "13.0.0+gitea-1.22.0"


class Receiver(HTTPServer):
    """Takes deliveries and keeps them; `answers` is what it says, 204 by default."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers = 204
        self.url = f"http://127.0.0.1:{self.server_port}/hooks/gitea"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers.items()), body))
        self.send_response(self.server.answers)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def hook(client: Client, url: str, events: list[str], path: str = "/repos/recipes/web", **more: Any) -> Any:
    config = {"url": url, "content_type": "json", "secret": "s3cret"}
    answer = client.post(f"{path}/hooks", "admin", type="gitea", active=True, config=config, events=events, **more)
    assert answer.status_code == 201
    return answer.json()


def happen(forge: Forge, name: str) -> None:
    """Do in the captured world what had been done when a delivery was captured."""
    keycloak = "recipes/keycloak"
    if name == "issue_comment_created":
        issue = forge.open_issue(keycloak, "alice", "a question")
        forge.comment(keycloak, issue.number, "mallory", "!testme")
    elif name == "pull_review_commented":
        forge.review(keycloak, 1, "alice", "looks fine")
    elif name == "pull_comment_unicode":
        forge.comment(keycloak, 1, "alice", "!testme ✅\r\n> quoted `!testme`\r\n```\r\n!testme\r\n```")
    else:
        comment = forge.comment(keycloak, 1, "alice", "!testme --extra-tests")
        if name != "pull_comment_created":
            forge.edit_comment(comment, "!testme")
        if name == "pull_comment_deleted":
            forge.delete_comment(comment)


# Pushes and pull requests being opened or closed are not delivered by the fake forge: cc-ci does not register for them.
NOT_DELIVERED = {"branch_pushed.push", "pull_head_pushed.push"}
NOT_DELIVERED |= {f"{name}.pull_request" for name in ("pull_closed", "pull_head_pushed", "pull_opened")}


@pytest.mark.parametrize("name", sorted({path.stem for path in CAPTURED.glob("*.json")} - NOT_DELIVERED))
def test_deliveries_are_as_the_real_ones(tmp_path: Path, receiver: Receiver, name: str) -> None:
    real = json.loads((CAPTURED / f"{name}.json").read_text())
    forge = make_world(Forge(tmp_path))
    forge.add_user("root", admin=True)
    with serve(forge) as server:
        client = Client(server)
        client.tokens["admin"] = client.tokens["root"]
        hook(client, receiver.url, COMMENTS, "/repos/recipes/keycloak")
        happen(forge, name.removesuffix(".issue_comment"))
        server.deliveries.flush()
        headers, body = receiver.got[-1]
        given = json.loads(body)
        assert differences(json.loads(real["body"]), given, server) == []
    assert body.startswith(b'{\n  "action": ')
    named = {key for key in real["headers"] if key.startswith("X-")}
    assert {key for key in headers if key.startswith("X-")} == named
    assert headers["X-Gitea-Event"] == real["headers"]["X-Gitea-Event"]
    signature = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["X-Gitea-Signature"] == signature and headers["X-Hub-Signature-256"] == f"sha256={signature}"


def test_issue_comment_alone_never_fires_on_pull_requests(
    client: Client, server: Server, forge: Forge, receiver: Receiver
) -> None:
    hook(client, receiver.url, ["issue_comment"])
    forge.comment("recipes/web", 1, "alice", "!testme")
    server.deliveries.flush()
    assert receiver.got == []
    issue = forge.open_issue("recipes/web", "alice", "Question")
    forge.comment("recipes/web", issue.number, "alice", "!testme")
    server.deliveries.flush()
    assert len(receiver.got) == 1


def test_the_same_url_twice_delivers_twice_and_an_organisation_for_all(
    client: Client, server: Server, forge: Forge, receiver: Receiver
) -> None:
    hook(client, receiver.url, COMMENTS)
    hook(client, receiver.url, COMMENTS, "/orgs/recipes")
    assert [client.get("/orgs/recipes/hooks", who).status_code for who in ("alice", "bot", "admin")] == [403, 403, 200]
    forge.comment("recipes/web", 1, "alice", "!testme")
    server.deliveries.flush()
    assert len(receiver.got) == 2
    other = forge.add_repo("recipes", "new")
    forge.comment(other, forge.open_issue(other, "alice", "x").number, "alice", "y")
    server.deliveries.flush()
    assert len(receiver.got) == 3


def test_a_secret_cannot_be_changed(client: Client, server: Server, forge: Forge, receiver: Receiver) -> None:
    made = hook(client, receiver.url, COMMENTS)
    body = {"active": True, "events": COMMENTS, "config": {"url": receiver.url, "content_type": "json", "secret": "new"}}
    assert client("PATCH", f"/repos/recipes/web/hooks/{made['id']}", "admin", json=body).status_code == 200
    forge.comment("recipes/web", 1, "alice", "!testme")
    server.deliveries.flush()
    headers, sent = receiver.got[0]
    assert headers["X-Gitea-Signature"] == hmac.new(b"s3cret", sent, hashlib.sha256).hexdigest()


def test_a_failed_delivery_is_not_sent_again(client: Client, server: Server, forge: Forge, receiver: Receiver) -> None:
    receiver.answers = 500
    hook(client, receiver.url, COMMENTS)
    hook(client, "http://127.0.0.1:1/closed", COMMENTS)
    hook(client, "http://192.0.2.1/outside", COMMENTS)
    forge.comment("recipes/web", 1, "alice", "!testme")
    server.deliveries.flush()
    assert [delivery.status for delivery in server.deliveries.done] == [500, 0, 0]
    receiver.answers = 204
    client.get("/version")
    server.deliveries.flush()
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("events", "told"),
    [(COMMENTS, ["COMMENT"]), ([*COMMENTS, "pull_request_review"], ["COMMENT", "APPROVED", "REQUEST_CHANGES"])],
)
def test_reviews_that_end_so_or_so_are_an_event_of_their_own(
    client: Client, server: Server, forge: Forge, receiver: Receiver, events: list[str], told: list[str]
) -> None:
    hook(client, receiver.url, events)
    for state in ("COMMENT", "APPROVED", "REQUEST_CHANGES"):
        forge.review("recipes/web", 1, "admin", state, state)
    server.deliveries.flush()
    assert [json.loads(body)["review"]["content"] for _, body in receiver.got] == told


@pytest.mark.parametrize("forge", [FORGEJO], indirect=True)
def test_forgejo_adds_headers(client: Client, server: Server, forge: Forge, receiver: Receiver) -> None:
    hook(client, receiver.url, COMMENTS)
    forge.comment("recipes/web", 1, "alice", "!testme")
    forge.review("recipes/web", 1, "alice", "fine")
    server.deliveries.flush()
    (comment, _), (review, body) = receiver.got
    assert (comment["X-Forgejo-Event"], comment["X-Gitea-Event-Type"]) == ("issue_comment", "pull_request_comment")
    assert review["X-Gitea-Event"] == "pull_request_comment" and "comment" not in json.loads(body)
