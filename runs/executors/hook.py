"""Drone's signed webhook, which only lets a run be looked at earlier: nothing that it says is believed.

Drone signs date and digest with the secret (`Signature`, an HTTP signature), and the digest is of the body. It sends each message
once, to whoever answers or not; a message that is lost, old or repeated only means that the server is asked at the usual time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping
from datetime import timedelta

from django.utils import timezone

from controlplane.secrets import SecretUnreadable
from enrollment.forges.http import date_in
from enrollment.webhooks import receiver
from enrollment.webhooks.receiver import OUTCOMES, Answer
from runs.models import HOLDING, RemoteExecutor, TestRun

#: A message whose date is further from our clock counts for nothing: somebody may have kept it.
AGE = timedelta(minutes=5)
#: Headers that are longer are no signature.
LONGEST = 1000
#: What is signed, in this order.
SIGNED = "date digest"

_FIELD = re.compile(r'\b(\w+)="([^"]*)"', re.ASCII)


def guard(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """For the web server, which has not read the body yet."""
    return receiver.guard(method, headers, is_claimed)


def is_claimed(headers: Mapping[str, str]) -> bool:
    return bool(_claim(headers)) and _is_new(headers)


def is_signed(headers: Mapping[str, str], secret: str) -> bool:
    """Whether the secret signed date and digest, and the date is now."""
    text = f"date: {headers.get('Date', '')}\ndigest: {headers.get('Digest', '')}"
    right = base64.b64encode(hmac.digest(secret.encode(), text.encode("utf-8", "replace"), "sha256"))
    return bool(secret) and _is_new(headers) and hmac.compare_digest(right, _claim(headers).encode("utf-8", "replace"))


def is_digest(headers: Mapping[str, str], body: bytes) -> bool:
    right = b"SHA-256=" + base64.b64encode(hashlib.sha256(body).digest())
    return hmac.compare_digest(right, headers.get("Digest", "").encode("utf-8", "replace"))


def attempt_in(body: bytes) -> tuple[uuid.UUID, int] | None:
    """The run and the attempt of the build that a message is about. Raises ValueError and RecursionError for invalid JSON."""
    found = json.loads(body.decode())
    for name in ("build", "params"):
        found = found.get(name) if isinstance(found, dict) else None
    run, attempt = (found.get(name) for name in ("CC_CI_RUN_ID", "CC_CI_ATTEMPT")) if isinstance(found, dict) else (None, None)
    if not isinstance(run, str) or not isinstance(attempt, str) or not re.fullmatch(r"[0-9]{1,4}", attempt, re.ASCII):
        return None
    return uuid.UUID(run), int(attempt)


def secret_of(name: str) -> tuple[RemoteExecutor | None, str]:
    """The executor with this name and its secret; none if webhooks are off there."""
    if "\0" in name:  # PostgreSQL takes none
        return None, ""
    row = RemoteExecutor.objects.filter(name=name, kind=RemoteExecutor.Kind.DRONE).first()
    try:
        return row, row.reveal_hook_secret() if row else ""
    except SecretUnreadable:
        return row, ""


def take(row: RemoteExecutor, body: bytes) -> Answer:
    """What to answer to a message that is signed; its run is looked at soon."""
    try:
        found = attempt_in(body)
    except (ValueError, RecursionError):
        return Answer(OUTCOMES["unreadable"])
    if found is None:
        return Answer(OUTCOMES["unwanted"])
    run, attempt = found
    held = TestRun.objects.filter(pk=run, attempt=attempt, executor=row, state__in=HOLDING)
    return Answer(OUTCOMES["accepted" if held.update(woken_at=timezone.now()) else "unwanted"])


def _claim(headers: Mapping[str, str]) -> str:
    """The signature, in one of the two headers in which it may be; empty if there is none of the right form."""
    for value in (headers.get("Signature", ""), headers.get("Authorization", "").removeprefix("Signature ")):
        fields = dict(_FIELD.findall(value)) if len(value) <= LONGEST else {}
        if fields.get("headers") == SIGNED and fields.get("algorithm") == "hmac-sha256":
            return str(fields.get("signature", ""))
    return ""


def _is_new(headers: Mapping[str, str]) -> bool:
    sent = date_in(headers, "Date")
    return sent is not None and abs(timezone.now() - sent) <= AGE
