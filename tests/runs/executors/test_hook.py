"""Drone's webhook: what is signed, new and about a run of ours makes cc-ci look earlier, and nothing else does anything."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone

from controlplane.registry import registry
from enrollment.webhooks.receiver import MAX_BODY
from runs.executors import builds, hook
from runs.models import RemoteExecutor, State, TestRun
from tests.runs.executors.fakes import FakeServer
from tests.runs.executors.scripts import does_nothing, report_of, run_to_end
from tests.runs.executors.test_builds import row, run, watch

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

__all__ = ["row", "run"]

SECRET = "a-secret-of-webhooks"


@pytest.fixture(autouse=True)
def on(row: RemoteExecutor) -> None:
    row.hook_secret = SECRET
    row.save()


def message(run: TestRun, **more: Any) -> bytes:
    params = {"CC_CI_RUN_ID": str(run.id), "CC_CI_ATTEMPT": str(run.attempt)}
    return json.dumps({"event": "build", "action": "updated", "build": {"number": 1, "params": {**params, **more}}}).encode()


def signed(
    body: bytes, secret: str = SECRET, name: str = "Signature", age: timedelta = timedelta(), **more: str
) -> dict[str, str]:
    """The headers of a message. Others than Drone's are given by name."""
    date = more.get("Date", format_datetime(timezone.now() - age, usegmt=True))
    digest = more.get("Digest", "SHA-256=" + base64.b64encode(hashlib.sha256(body).digest()).decode())
    code = base64.b64encode(hmac.digest(secret.encode(), f"date: {date}\ndigest: {digest}".encode(), "sha256")).decode()
    claim = f'keyId="hmac-key",algorithm="hmac-sha256",signature="{code}",headers="date digest"'
    claim = claim if name == "Signature" else f"Signature {claim}"
    return {"Date": date, "Digest": digest, name: claim, "X-Drone-Event": "build", **more}


def post(body: bytes, headers: dict[str, str], name: str = "drone", kind: str = "application/json") -> int:
    return Client().post(f"/runs/executors/{name}/hook/", body, content_type=kind, headers=headers).status_code


@pytest.mark.parametrize("name", ["Signature", "Authorization"])
def test_a_message_makes_its_run_looked_at_earlier(
    run: TestRun, fake: FakeServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("SOONEST", "LATEST"):
        monkeypatch.setattr(builds, word, 600.0)
    fake.script = does_nothing
    for _ in range(2):
        watch(run)
    run_to_end(fake, fake.builds[0], report_of(fake.builds[0]))
    asked = len(fake.requests)
    assert (watch(run).state, len(fake.requests)) == (State.RUNNING, asked), "it is too early"
    body = message(run)
    assert post(body, signed(body, name=name)) == 202
    assert watch(run).state == State.PASSED
    assert post(body, signed(body)) == 204, "it has ended"


def test_each_message_makes_one_look(run: TestRun, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("SOONEST", "LATEST"):
        monkeypatch.setattr(builds, word, 600.0)
    fake.script = does_nothing
    for _ in range(2):
        watch(run)
    for ahead in (timedelta(), timedelta(hours=3)):  # the clock of the machine that got it
        TestRun.objects.update(woken_at=timezone.now() + ahead)
        asked = len(fake.requests)
        for _ in range(3):
            watch(run)
        assert len(fake.requests) - asked == (0 if ahead else 1)


def changed(headers: dict[str, str], **more: str) -> dict[str, str]:
    return {**headers, **more}


HOSTILE: dict[str, Callable[[bytes], dict[str, str]]] = {
    "nothing": lambda body: {},
    "no date": lambda body: signed(body, Date=""),
    "no digest": lambda body: signed(body, Digest=""),
    "another secret": lambda body: signed(body, "another"),
    "an empty secret": lambda body: signed(body, ""),
    "old": lambda body: signed(body, age=hook.AGE + timedelta(seconds=2)),
    "from the future": lambda body: signed(body, age=-hook.AGE - timedelta(seconds=2)),
    "another body's": lambda body: signed(body + b" "),
    "another digest": lambda body: signed(body, Digest="MD5=" + base64.b64encode(hashlib.md5(body).digest()).decode()),
    "another date": lambda body: changed(signed(body), Date=format_datetime(timezone.now() + timedelta(seconds=60), usegmt=True)),
    "a date without a zone": lambda body: signed(body, Date=format_datetime(timezone.now().replace(tzinfo=None))),
    "no date at all": lambda body: signed(body, Date="tomorrow"),
    "a date beyond all": lambda body: signed(body, Date="Mon, 01 Jan 99999 00:00:00 GMT"),
    "other fields signed": lambda body: changed(signed(body), Signature=signed(body)["Signature"].replace("date digest", "date")),
    "another algorithm": lambda body: changed(signed(body), Signature=signed(body)["Signature"].replace("sha256", "sha1")),
    "no signature": lambda body: changed(signed(body), Signature='algorithm="hmac-sha256",headers="date digest"'),
    "an empty signature": lambda body: changed(
        signed(body), Signature='algorithm="hmac-sha256",headers="date digest",signature=""'
    ),
    "not ASCII": lambda body: changed(signed(body), Signature=signed(body)["Signature"].replace('signature="', 'signature="é')),
    "long": lambda body: changed(signed(body), Signature=signed(body)["Signature"] + ',x="' + "y" * 2000 + '"'),
    "many quotes": lambda body: changed(signed(body), Signature='a="' * 300),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_not_signed_and_new_is_refused(run: TestRun, how: str) -> None:
    body = message(run)
    assert post(body, HOSTILE[how](body)) == 401
    assert TestRun.objects.get().woken_at is None


@pytest.mark.both_databases
@pytest.mark.parametrize("name", ["other", "woodpecker", "%00", "drone%00", "..", "drone%20"])
def test_other_executors_and_those_without_a_secret_hear_nothing(run: TestRun, row: RemoteExecutor, name: str) -> None:
    RemoteExecutor.objects.create(name="woodpecker", kind="woodpecker", url="http://x", hook_secret=SECRET)
    RemoteExecutor.objects.create(name="other", kind="drone", url="http://x", hook_secret="")
    body = message(run)
    assert post(body, signed(body), name) in (401, 404)
    assert post(body, signed(body, ""), name) in (401, 404)
    assert TestRun.objects.get().woken_at is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 415),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"[]", 204),
        (b"null", 204),
        (b'{"build": 7}', 204),
        (b'{"build": {"params": {"CC_CI_RUN_ID": {}, "CC_CI_ATTEMPT": "1"}}}', 204),
        (b'{"build": {"params": {"CC_CI_RUN_ID": "x", "CC_CI_ATTEMPT": "1"}}}', 400),
        (b'{"build": {"params": {"CC_CI_RUN_ID": "00000000-0000-0000-0000-000000000000", "CC_CI_ATTEMPT": "1"}}}', 204),
        (b'{"build": {"params": {"CC_CI_RUN_ID": "00000000-0000-0000-0000-000000000000", "CC_CI_ATTEMPT": "-1"}}}', 204),
        (b'{"build": {"params": {"CC_CI_RUN_ID": "0", "CC_CI_ATTEMPT": "' + b"9" * 5000 + b'"}}}', 204),
    ],
)
def test_a_body_that_is_no_message_does_nothing(run: TestRun, body: bytes, status: int) -> None:
    assert post(body, signed(body)) == status
    assert TestRun.objects.get().woken_at is None


def test_only_the_attempt_of_this_executor_that_works_is_woken(run: TestRun, row: RemoteExecutor) -> None:
    body = message(run, CC_CI_ATTEMPT="2")
    assert post(body, signed(body)) == 204
    other = RemoteExecutor.objects.create(name="other", kind="drone", url="http://x", hook_secret=SECRET)
    body = message(run)
    assert post(body, signed(body), other.name) == 204
    TestRun.objects.update(state=State.PASSED)
    assert post(body, signed(body)) == 204
    assert TestRun.objects.get().woken_at is None


def test_the_head_is_judged_before_the_body_is_read(run: TestRun, django_assert_num_queries: Any) -> None:
    body = message(run)
    with django_assert_num_queries(0):
        assert registry.judge("POST", "/runs/executors/drone/hook/", {"Content-Type": "application/json"}) == (
            401,
            "unsigned\n",
        )
        headers = {"Content-Type": "application/json", **signed(body)}
        assert registry.judge("POST", "/runs/executors/drone/hook/", headers) is None
        assert registry.judge("POST", "/runs/executors/drone/hook/", {**headers, "Content-Length": str(MAX_BODY + 1)}) == (
            413,
            "large\n",
        )
        assert post(body, {}) == 401
        assert post(body, signed(body), kind="text/plain") == 415
        assert Client().get("/runs/executors/drone/hook/").status_code == 405
    big = b" " * MAX_BODY + body
    assert post(big, signed(big)) == 413


def test_a_message_that_was_kept_counts_for_some_minutes(run: TestRun) -> None:
    body = message(run)
    headers = signed(body)
    with time_machine.travel(timezone.now() + hook.AGE - timedelta(seconds=5)):
        assert post(body, headers) == 202
    with time_machine.travel(timezone.now() + hook.AGE + timedelta(seconds=5)):
        assert post(body, headers) == 401
