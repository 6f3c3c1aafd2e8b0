"""Deliveries for tests: captured ones, made-up ones, and those that the fake forge would send, carried by hand."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from django.http import HttpResponse
from django.test import Client

from enrollment.fakeforge.deliveries import _wants, headers, payload
from enrollment.fakeforge.issues import Event
from enrollment.fakeforge.model import Hook
from enrollment.models import WebhookConfig
from enrollment.webhooks import process, receiver
from tests.world import World

CAPTURED = Path(__file__).parents[1] / "data" / "gitea" / "deliveries"
#: With which the captured ones are signed.
SECRET = "not-a-real-secret"


@cache
def forge_side() -> Client:
    """What delivers. One for all tests: each new one reads the whole folder of static files."""
    return Client()


def captured(name: str) -> tuple[dict[str, str], bytes]:
    """Headers and exact body of a captured delivery."""
    data = json.loads((CAPTURED / f"{name}.json").read_text())
    return data["headers"], data["body"].encode()


def sign(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def signed(body: bytes, secret: str = SECRET, event: str = "issue_comment", delivery: str = "") -> dict[str, str]:
    """Headers as Gitea sends them."""
    return {
        "X-Gitea-Event": event,
        "X-Gitea-Delivery": delivery or str(uuid.uuid4()),
        "X-Gitea-Signature": sign(body, secret),
    }


def send(hook: WebhookConfig, body: bytes, given: dict[str, str], *, keyed: bool = True, client: Any = None) -> HttpResponse:
    """Deliver to the hook's address."""
    path = f"/hooks/{hook.forge_id}/" + (f"?hook={hook.key}" if keyed else "")
    given = {name: value for name, value in given.items() if name not in ("Host", "Content-Length", "Content-Type")}
    return (client or forge_side()).post(path, body, content_type="application/json", headers=given)


def fresh(body: bytes, **changes: Any) -> bytes:
    """A captured body with other values; `comment={…}` changes some of the comment alone."""
    data = json.loads(body)
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and isinstance(data.get(name), dict) else value
    return json.dumps(data).encode()


class Bridge:
    """Carries what the fake forge would deliver to our receiver, at once and in this process.

    `down` loses deliveries, as a server does whose receiver does not answer.
    """

    def __init__(self, world: World) -> None:
        self.world, self.down = world, False
        self.statuses: list[int] = []
        self.waiting: list[Callable[[], None]] = []
        world.remote.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        body = json.dumps(payload(self.world.remote, event), indent=2, ensure_ascii=False).encode()
        for hook in list(self.world.remote.tables.hooks.values()):
            if hook.active and _wants(self.world.remote, hook, event):
                given = headers(self.world.remote, hook, event, body)
                self.waiting.append(lambda hook=hook, given=given: self._post(hook, given, body))  # type: ignore[misc]

    def _post(self, hook: Hook, given: dict[str, str], body: bytes) -> None:
        if self.down:
            return
        address = urlsplit(hook.url)
        given = {name: value for name, value in given.items() if name != "Content-Type"}
        answer = forge_side().post(f"{address.path}?{address.query}", body, content_type="application/json", headers=given)
        self.statuses.append(answer.status_code)

    def carry(self) -> None:
        """Deliver all that has happened, and let the tasks take it."""
        receiver.forget()
        for post in self.waiting:
            post()
        self.waiting.clear()
        process.take_waiting()


@contextmanager
def writes(world: World) -> Iterator[list[str]]:
    """The writes that our client makes at the forge meanwhile."""
    before, found = len(world.own_requests()), []
    yield found
    found += [f"{row.method} {row.path.removeprefix('/api/v1')}" for row in world.own_requests()[before:] if row.method != "GET"]


def commit_at_once() -> Any:
    """Let what is to happen after a commit happen, though a test's transaction is never committed."""
    return mock.patch("django.db.transaction.on_commit", lambda function: function())
