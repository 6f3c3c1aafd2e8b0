"""Whatever comes: never a 5xx, never a row for a stranger, never a comment out of nonsense."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
import time_machine
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from enrollment import comments
from enrollment.forges.gitea.payloads import SIGNATURES
from enrollment.models import Comment, Delivery, PullRequest, WebhookConfig
from enrollment.webhooks import process, receiver
from tests.enrollment.hooks import CAPTURED, SECRET, captured, forge_side, sign
from tests.factories import ForgeFactory, RepositoryFactory, WebhookConfigFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.4)]

THEN = datetime(2026, 11, 23, 20, 46, tzinfo=UTC)
#: Of each of the three tests.
EXAMPLES = int(os.environ.get("RECEIVER_EXAMPLES", "250"))
BODIES = [captured(path.stem)[1] for path in sorted(CAPTURED.glob("*.json"))]

quick = profile(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


ANOTHERS, ENDED = "the-secret-of-another-hook", "a-secret-whose-time-is-over"


@pytest.fixture
def hook(data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[WebhookConfig]:
    """A registered hook, beside another repository's, one whose time is over, and one at another forge."""
    caplog.set_level(logging.CRITICAL)  # a hundred thousand lines would be kept
    monkeypatch.setattr(comments, "read_now", lambda pull: comments.PollResult(str(pull)))
    receiver.forget()
    with time_machine.travel(THEN, tick=True):
        forge, other = ForgeFactory(name="git.example.org"), ForgeFactory(name="other.example.org")
        row = RepositoryFactory(
            forge=forge, forge_repo_id=3, owner="recipes", name="keycloak", enrolled_at=THEN - timedelta(days=30)
        )
        same: dict[str, Any] = {"state": "registered", "state_at": THEN - timedelta(hours=1)}
        made = WebhookConfigFactory(repository=row, secret=SECRET, **same)
        WebhookConfigFactory(repository__forge=forge, secret=ANOTHERS, **same)
        WebhookConfigFactory(repository__forge=other, secret=ANOTHERS, **same)
        WebhookConfigFactory(repository=row, secret=ENDED, state="rotating", ends_at=THEN - timedelta(seconds=1))
        yield made
    receiver.forget()


def states() -> list[Any]:
    return list(WebhookConfig.objects.order_by("pk").values_list("pk", "state", "state_at"))


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


#: What a forger does to a delivery that would be good: (what, with which secret, how the signature is spoilt).
SPOILT: dict[str, Callable[[str, int], str]] = {
    "cut": lambda right, number: right[: number % 64],
    "longer": lambda right, number: right + "0" * (1 + number % 5),
    "upper case": lambda right, number: right.upper() if right.upper() != right else "",
    "another prefix": lambda right, number: ("sha1=", "SHA256=", "sha256=sha256=", "sha256:", "hmac=")[number % 5] + right,
    "one character": lambda right, number: right[: number % 64] + "g" + right[number % 64 + 1 :],
    "empty": lambda right, number: "sha256=",
}
SPELLED = (
    "0{}",
    "00{}",
    "+{}",
    "{}.0",
    "{}_",
    " {}",
    "{} ",
    "\u0660{}",
    "\uff10{}",
    "-{}",
    "{}\0",
    "{}/../{}",
    "GIT.example.org",
)
forgers = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["body", "another's", "ended", "another forge", "spelling", *SPOILT]),
        "header": st.sampled_from(SIGNATURES),
        "number": st.integers(0, 1000),
        "body": st.one_of(st.sampled_from(BODIES), st.binary(min_size=1, max_size=300)),
        "keyed": st.booleans(),
    }
)


def forged(hook: WebhookConfig, what: str, header: str, number: int, body: bytes, keyed: bool) -> dict[str, Any]:
    """A request that is nearly right."""
    forge, key, secret, sent = str(hook.forge_id), hook.key, SECRET, body
    if what == "body":
        place = number % len(body)
        sent = body[:place] + bytes([body[place] ^ (1 << number % 8)]) + body[place + 1 :]
    elif what == "another's":
        secret, keyed = ANOTHERS, True
    elif what == "ended":
        secret, key = ENDED, WebhookConfig.objects.get(state="rotating").key
    elif what == "another forge":
        forge = str(WebhookConfig.objects.exclude(forge=hook.forge_id).get().forge_id)
    elif what == "spelling":
        forge = SPELLED[number % len(SPELLED)].format(forge, forge)
    claim = sign(body, secret)
    claim = SPOILT[what](claim, number) if what in SPOILT else claim
    headers = {header: claim, "X-Gitea-Event": "issue_comment"}
    query = f"hook={key}" if keyed else ""
    return {"method": "POST", "forge": forge, "query": query, "kind": "application/json", "headers": headers, "body": sent}


def knock(hook: WebhookConfig, method: str, forge: str | None, query: str | None, kind: str, headers: Any, body: bytes) -> int:
    """Send it, and see that nothing is left of it. Returns the status."""
    before = states()
    path = quote(f"/hooks/{hook.forge_id if forge is None else forge}/")
    address = {"PATH_INFO": unquote_to_bytes(path).decode("latin-1"), "QUERY_STRING": hook_query(hook, query)}
    answer = forge_side().generic(method, "/hooks/1/", body or b" ", content_type=kind, headers=headers, **address)
    assert not Delivery.objects.exists()
    assert states() == before
    assert set(receiver._known) <= set(WebhookConfig.objects.values_list("forge_id", flat=True))
    assert len(receiver._forges[0]) in (0, 4), "two forges, each by its number and its name"
    assert all(len(known.opened) <= 3 for known in receiver._known.values())
    return answer.status_code


def hook_query(hook: WebhookConfig, query: str | None) -> str:
    return f"hook={hook.key}" if query is None else query


def come(hook: WebhookConfig, who: dict[str, Any]) -> None:
    if "what" in who:
        status = knock(hook, **forged(hook, **who))
        assert status == 401 or (who["what"] == "spelling" and status == 404), f"{who['what']}: {status}"
    else:
        status = knock(hook, **who)
        assert status in (401, 405, 413, 415), status


@given(who=st.one_of(strangers, forgers))
@quick
def test_a_stranger_leaves_nothing(hook: WebhookConfig, who: dict[str, Any]) -> None:
    come(hook, who)


def test_what_is_forged_is_nearly_right(hook: WebhookConfig) -> None:
    """Each kind of forgery is the one thing that is wrong: without it the delivery is taken."""
    body = captured("pull_comment_created.issue_comment")[1]
    for what in ("ended", "another's", "another forge", *SPOILT, "body", "spelling"):
        come(hook, {"what": what, "header": "X-Gitea-Signature", "number": 7, "body": body, "keyed": True})
    WebhookConfig.objects.update(ends_at=THEN + timedelta(hours=1))
    receiver.forget()
    assert deliver(hook, body, "issue_comment") == 202


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(who=st.one_of(strangers, forgers))
@profile(quick, max_examples=int(os.environ.get("RECEIVER_EXAMPLES_LONG", "100000")))
def test_a_stranger_and_long(hook: WebhookConfig, who: dict[str, Any]) -> None:
    come(hook, who)


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
    if answer.status_code == 202:
        process.take_waiting()
    return answer.status_code


def clear() -> None:
    for model in (Delivery, Comment, PullRequest):
        model.objects.all()._raw_delete("default")  # type: ignore[attr-defined]  # nothing else hangs on them
    WebhookConfig.objects.filter(state="verified").update(state="registered")


@pytest.mark.slow(2)
@given(body=nonsense, event=event)
@quick
def test_signed_nonsense_is_at_most_one_rejected_delivery(hook: WebhookConfig, body: bytes, event: str) -> None:
    clear()
    before = states()
    assert deliver(hook, body, event) == 400
    assert Delivery.objects.get().outcome == "rejected"
    assert deliver(hook, body, event) == 200
    assert Delivery.objects.count() == 1
    assert not Comment.objects.exists()
    assert states() == before


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


@pytest.mark.slow(2)
@given(body=mutated(), event=event)
@quick
def test_a_mutated_delivery_brings_at_most_the_comment_that_it_holds(hook: WebhookConfig, body: bytes, event: str) -> None:
    clear()
    status = deliver(hook, body, event)
    assert status in (202, 204, 400, 404)
    row = Delivery.objects.get()
    assert row.outcome != "failed", row.reason
    assert row.outcome != "accepted", row.reason
    assert status == 202 or not WebhookConfig.objects.filter(state="verified").exists()
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
    status = deliver(hook, body, event)
    assert status in (202, 204, 400, 404)
    assert Delivery.objects.get().outcome not in ("failed", "accepted")
    assert status == 202 or not WebhookConfig.objects.filter(state="verified").exists()
    assert Comment.objects.count() <= 1
