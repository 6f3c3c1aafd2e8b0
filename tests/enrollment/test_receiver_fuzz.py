"""Whatever comes: never a 5xx, never a row for a stranger, never a comment out of nonsense."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from enrollment import deliveries, polling, receiver
from enrollment.models import Comment, Delivery, PullRequest, WebhookConfig
from tests.enrollment.hooks import CAPTURED, SECRET, captured, forge_side, sign
from tests.factories import RepositoryFactory, WebhookConfigFactory

pytestmark = pytest.mark.django_db

THEN = datetime(2026, 11, 23, 20, 46, tzinfo=UTC)
#: Of each of the three tests.
EXAMPLES = int(os.environ.get("RECEIVER_EXAMPLES", "700"))
BODIES = [captured(path.stem)[1] for path in sorted(CAPTURED.glob("*.json"))]

quick = profile(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def hook(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookConfig]:
    monkeypatch.setattr(polling, "look_at", lambda pull: polling.Look(str(pull)))
    receiver.forget()
    with time_machine.travel(THEN, tick=True):
        row = RepositoryFactory(forge_repo_id=3, owner="recipes", name="keycloak", enrolled_at=THEN - timedelta(days=30))
        yield WebhookConfigFactory(repository=row, state_at=THEN - timedelta(hours=1))
    receiver.forget()


# --- strangers

word = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=80)
name = st.sampled_from(["X-Gitea-Signature", "X-Forgejo-Signature", "X-Hub-Signature-256", "X-Gitea-Event", "X-Gitea-Delivery"])
strange_body = st.one_of(st.binary(max_size=300), st.sampled_from(BODIES), st.just(b"[" * 5000))


strangers = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["POST"] * 8 + ["GET", "PATCH"]),
        "forge": st.one_of(st.none(), word.filter(lambda text: text and "/" not in text and text not in (".", ".."))),
        "query": st.one_of(st.none(), word, st.just("hook=" + "&hook=" * 1500)),
        "kind": st.sampled_from(["application/json"] * 8 + ["text/plain", "application/json;;", "\xff"]),
        "headers": st.dictionaries(name, word, max_size=5),
        "body": strange_body,
    }
)


def knock(hook: WebhookConfig, method: str, forge: str | None, query: str | None, kind: str, headers: Any, body: bytes) -> None:
    path = f"/hooks/{hook.forge_id if forge is None else forge}/"
    address = {"PATH_INFO": path, "QUERY_STRING": f"hook={hook.key}" if query is None else query}
    answer = forge_side().generic(method, "/hooks/1/", body or b" ", content_type=kind, headers=headers, **address)
    assert answer.status_code in (401, 405, 413, 415), answer.status_code
    assert not Delivery.objects.exists()
    assert WebhookConfig.objects.get().state == "verified"


@given(stranger=strangers)
@quick
def test_a_stranger_leaves_nothing(hook: WebhookConfig, stranger: dict[str, Any]) -> None:
    knock(hook, **stranger)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(stranger=strangers)
@profile(quick, max_examples=int(os.environ.get("RECEIVER_EXAMPLES_LONG", "100000")))
def test_a_stranger_and_long(hook: WebhookConfig, stranger: dict[str, Any]) -> None:
    knock(hook, **stranger)


# --- signed

ODD: list[Any] = [-1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**400, "", "\0", "a\0b", "\ud800", "x" * 5000, "!testme"]
ODD += ["created", "edited", "deleted", "javascript:alert(1)", "https://git.example.org/recipes/keycloak/pulls/" + "9" * 20]
ODD += ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "2026-11-23T20:45:40", "2026-11-23T20:45:41Z"]
leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(ODD))
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6)
nonsense = st.one_of(st.binary(max_size=200), value.map(lambda data: json.dumps(data).encode()), st.just(b"{" * 3000))
event = st.sampled_from(["issue_comment"] * 6 + ["pull_request_comment", "push", "", "\xff" * 60])


def deliver(hook: WebhookConfig, body: bytes, event: str) -> int:
    """Deliver it rightly signed, and take what waits. Returns the status."""
    body = body or b" "
    given = {"X-Gitea-Signature": sign(body, SECRET), "X-Gitea-Event": event}
    answer = forge_side().post(f"/hooks/{hook.forge_id}/?hook={hook.key}", body, content_type="application/json", headers=given)
    deliveries.take_waiting()
    return answer.status_code


def clear() -> None:
    for model in (Delivery, Comment, PullRequest):
        model.objects.all().delete()


@given(body=nonsense, event=event)
@quick
def test_signed_nonsense_is_at_most_one_rejected_delivery(hook: WebhookConfig, body: bytes, event: str) -> None:
    clear()
    assert deliver(hook, body, event) == 400
    assert Delivery.objects.get().outcome == "rejected"
    assert deliver(hook, body, event) == 200
    assert Delivery.objects.count() == 1
    assert not Comment.objects.exists()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A captured delivery in which some values are others, or missing."""
    data = deepcopy(json.loads(draw(st.sampled_from(BODIES))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = data
        while True:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = draw(st.sampled_from(list(keys)))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
                del place[key]
            else:
                place[key] = draw(value)
            break
    return json.dumps(data).encode()


@given(body=mutated(), event=event)
@quick
def test_a_mutated_delivery_brings_at_most_the_comment_that_it_holds(hook: WebhookConfig, body: bytes, event: str) -> None:
    clear()
    status = deliver(hook, body, event)
    assert status in (202, 204, 400, 404)
    row = Delivery.objects.get()
    assert row.outcome != "failed", row.reason
    assert row.outcome != "accepted", row.reason
    if comment := Comment.objects.first():
        said = json.loads(body)["comment"]
        assert (status, Comment.objects.count()) == (202, 1)
        assert (comment.forge_comment_id, comment.author_id) == (said["id"], said["user"]["id"])
        assert "!testme" in comment.body.lower()
        assert THEN - timedelta(days=1, minutes=1) < comment.created_at < THEN + timedelta(hours=1)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(body=st.one_of(nonsense, mutated()), event=event)
@profile(quick, max_examples=int(os.environ.get("RECEIVER_EXAMPLES_LONG", "100000")))
def test_signed_and_long(hook: WebhookConfig, body: bytes, event: str) -> None:
    clear()
    assert deliver(hook, body, event) in (202, 204, 400, 404)
    assert Delivery.objects.get().outcome not in ("failed", "accepted")
    assert Comment.objects.count() <= 1
