"""Deliveries of comments and reviews to webhooks; each is tried once, like on a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from enrollment.fakeforge.issues import Event
from enrollment.fakeforge.model import Hook, Pull
from enrollment.fakeforge.render import Json, Renderer
from enrollment.fakeforge.store import Forge

SECONDS = 5
# The fake forge never sends anything off this host, whatever a hook says.
HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass
class Delivery:
    """One delivery; `status` is the receiver's response, 0 if there was none."""

    hook_id: int
    url: str
    headers: dict[str, str]
    body: bytes
    status: int = 0


class Deliverer:
    """Sends a forge's events to its hooks, in order, in its own thread."""

    def __init__(self, forge: Forge) -> None:
        self.forge = forge
        self.done: deque[Delivery] = deque(maxlen=1000)
        self._waiting: queue.Queue[Delivery | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="deliveries", daemon=True)
        self._thread.start()
        forge.listeners.append(self._hear)

    def stop(self) -> None:
        """Stop sending."""
        if self._hear in self.forge.listeners:
            self.forge.listeners.remove(self._hear)
            self._waiting.put(None)

    def flush(self) -> None:
        """Wait until all events so far have been delivered, or tried."""
        self._waiting.join()

    def _hear(self, event: Event) -> None:
        body = json.dumps(payload(self.forge, event), indent=2, ensure_ascii=False).encode()
        for hook in self.forge.tables.hooks.values():
            if hook.active and _wants(self.forge, hook, event):
                self._waiting.put(Delivery(hook.id, hook.url, headers(self.forge, hook, event, body), body))

    def _work(self) -> None:
        session = requests.Session()
        session.trust_env = False
        while (delivery := self._waiting.get()) is not None:
            try:
                if urlsplit(delivery.url).hostname in HOSTS:
                    given = {"data": delivery.body, "headers": delivery.headers}
                    answer = session.post(delivery.url, **given, timeout=SECONDS, allow_redirects=False)  # type: ignore[arg-type]
                    delivery.status = answer.status_code
            except (requests.RequestException, ValueError):
                pass  # lost, and not retried
            self.done.append(delivery)
            self._waiting.task_done()
        self._waiting.task_done()


def _wants(forge: Forge, hook: Hook, event: Event) -> bool:
    repo = forge.tables.repos[event.issue.repo_id]
    name = fine_name(event)
    if event.action == "reviewed" and not forge.features.hook_events_expanded:
        name = "pull_request_review"
    return (hook.repo_id == repo.id or hook.org_id == repo.owner_id) and name in hook.events


def fine_name(event: Event) -> str:
    """The event name that a hook subscribes to. A comment on a pull request is not `issue_comment` here."""
    if event.action == "reviewed":
        how = {"APPROVED": "approved", "REQUEST_CHANGES": "rejected"}.get(event.comment.state, "comment")
        return f"pull_request_review_{how}"
    return "pull_request_comment" if isinstance(event.issue, Pull) else "issue_comment"


def headers(forge: Forge, hook: Hook, event: Event, body: bytes) -> dict[str, str]:
    """The headers of a delivery; all kinds of comments use `issue_comment`."""
    forgejo = forge.version.startswith("13")
    sha256 = hmac.new(hook.secret.encode(), body, hashlib.sha256).hexdigest()
    sha1 = hmac.new(hook.secret.encode(), body, hashlib.sha1).hexdigest()
    name = "pull_request_comment" if forgejo and event.action == "reviewed" else "issue_comment"
    delivery = str(uuid.uuid4())
    sent = {
        "User-Agent": "Go-http-client/1.1",
        "Content-Type": "application/json",
        "Accept-Encoding": "gzip",
        "X-GitHub-Delivery": delivery,
        "X-GitHub-Event": name,
        "X-Hub-Signature": f"sha1={sha1}",
        "X-Hub-Signature-256": f"sha256={sha256}",
    }
    for brand in ("Gitea", "Gogs", "Forgejo") if forgejo else ("Gitea", "Gogs"):
        sent |= {f"X-{brand}-Delivery": delivery, f"X-{brand}-Event": name, f"X-{brand}-Signature": sha256}
        if forgejo:
            sent[f"X-{brand}-Event-Type"] = fine_name(event)
    return sent


def payload(forge: Forge, event: Event) -> Json:
    """The body of a delivery. It names no commit, and for a review it contains no comment."""
    # For a review the real server shows a reader's permissions, for a comment its author's.
    render = Renderer(forge, None if event.action == "reviewed" else event.sender)
    issue, repo = event.issue, forge.tables.repos[event.issue.repo_id]
    frame = {"repository": render.repo(repo), "sender": render.user(event.sender)}
    if event.action == "reviewed" and isinstance(issue, Pull):
        review = {"type": "pull_request_comment", "content": event.comment.body}
        return {"action": "reviewed", "number": issue.number, "pull_request": render.pull(issue), **frame, "review": review}
    shown = render.issue(issue)
    if event.action == "created":
        shown["comments"] -= 1  # the real server renders this before it counts
    body: Json = {"action": event.action, "issue": shown, "comment": render.comment(event.comment)}
    if event.action == "edited":
        body["changes"] = {"body": {"from": event.old_body}}
    return {**body, **frame, "is_pull": isinstance(issue, Pull)}
