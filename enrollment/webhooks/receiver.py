"""Signed delivery -> Delivery row -> Comment row, or a poll of the pull request.

Requests are checked in the order of OUTCOMES, cheapest first: the head before the body is read, and the signature before
anything in the body is parsed. The forge waits meanwhile and gives up after some seconds, so one row is written and the rest
is left to a task.

A delivery decides nothing. It creates the same Comment row that polling would, or has that pull request polled now; polling
finds what is lost or doubtful.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from django.db import connection, transaction
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import Sealed, SecretUnreadable, decrypt
from enrollment.forge_access.clock_skew import AHEAD
from enrollment.forges.base import Deliveries, Garbage, Heard
from enrollment.forges.kinds import KINDS
from enrollment.models import Forge, Repository, WebhookConfig
from enrollment.models.webhooks import Delivery
from enrollment.webhooks.lifecycle import State

log = logging.getLogger(__name__)

#: Maximum bytes of a delivery. A comment with everything around it is some kilobytes.
MAX_BODY = 1024 * 1024
#: Seconds for which secrets and repositories are cached.
BELIEVED = 5.0
#: Strangers who invent keys cause at most one query in so many seconds.
ASKED_AGAIN = 1.0
#: If a URL names no hook, each secret is tried; at most so many bytes are hashed for that, about 50 ms.
HASHED_AT_MOST = 32 * 1024 * 1024
#: One task processes all waiting deliveries; a burst queues at most one in so many seconds.
QUEUED_AGAIN = 0.2


@dataclass(frozen=True)
class Outcome:
    """A row of the table of outcomes. `kept` is the outcome of the Delivery row; empty if none is stored."""

    name: str
    status: int
    when: str
    kept: str = ""


#: Every request gets one of these. In this order; docs/webhooks.md shows the table.
OUTCOMES: dict[str, Outcome] = {
    row.name: row
    for row in (
        Outcome("method", 405, "The method is not POST."),
        Outcome("type", 415, "The content type is not `application/json`."),
        Outcome("large", 413, "The body is larger than 1 MiB."),
        Outcome("unsigned", 401, "No signature, a wrong one, or one with a secret that is no longer valid."),
        Outcome("unreadable", 400, "Correctly signed, but it cannot be understood.", "rejected"),
        Outcome("known", 200, "Correctly signed, but a delivery with this id came before. Nothing more happens."),
        Outcome("foreign", 404, "Correctly signed, but about a repository that is not enrolled, or not this hook's.", "foreign"),
        Outcome("unwanted", 204, "Correctly signed, but nothing that cc-ci uses.", "unwanted"),
        Outcome(
            "accepted",
            202,
            "Correctly signed: a comment written or edited on a pull request, a review, or a pull request that was closed.",
            "accepted",
        ),
        Outcome("unwell", 503, "The database cannot be reached, or cc-ci failed. Polling will find the comment."),
    )
}


def is_claimed(headers: Mapping[str, str]) -> bool:
    """Whether there is what may be a signature."""
    return any(kind.deliveries.signatures(headers) for kind in KINDS.values() if kind.deliveries)


def judge_head(
    method: str, headers: Mapping[str, str], claimed: Callable[[Mapping[str, str]], bool] = is_claimed
) -> Outcome | None:
    """Check a request before its body is read; returns an outcome if it is rejected. Unsigned bodies are never read."""
    if method != "POST":
        return OUTCOMES["method"]
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return OUTCOMES["type"]
    length = headers.get("Content-Length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY):
        return OUTCOMES["large"]
    return None if claimed(headers) else OUTCOMES["unsigned"]


def guard(
    method: str, headers: Mapping[str, str], claimed: Callable[[Mapping[str, str]], bool] = is_claimed
) -> tuple[int, str] | None:
    """`judge_head` for the web server, which has not read the body yet."""
    wrong = judge_head(method, headers, claimed)
    return (wrong.status, f"{wrong.name}\n") if wrong else None


def deliveries_of(kind: str) -> Deliveries | None:
    return KINDS[kind].deliveries if kind in KINDS else None


# --- who signed it


@dataclass(frozen=True)
class Secret:
    """A valid secret, encrypted, with its hook and that hook's scope: one repository's row, or all of an owner's."""

    hook_id: int
    token: str
    state: str
    ends_at: datetime | None
    repository_id: int | None
    owner_id: int | None


@dataclass(frozen=True)
class Enrolled:
    """A watched repository."""

    pk: int
    owner_id: int | None


@dataclass(frozen=True)
class Known:
    """What the receiver knows of a forge without a query per delivery."""

    forge_id: int
    kind: str
    at: float
    secrets: Mapping[str, Secret]
    repositories: Mapping[int, Enrolled]  #: by the forge's id
    #: Plain secrets by sealed ones, as far as they were needed. Values are put in and taken out, and never gone through: it is
    #: shared by threads.
    opened: dict[str, bytes]


#: The forges by number and by name, as URLs may have them, and when they were read. Replaced as a whole.
_forges: tuple[Mapping[str, tuple[int, str]], float] = ({}, float("-inf"))
#: By the forge's primary key, so there are never more than forges, whatever strangers invent.
_known: dict[int, Known] = {}
_queued: dict[int, float] = {}


def forget() -> None:
    """Drop the cached rows, so that the next delivery queries the database; for tests, and after rows were changed."""
    global _forges
    _forges = ({}, float("-inf"))
    _known.clear()
    _queued.clear()


def _forge_of(name: str) -> tuple[int, str] | None:
    """Id and kind of the enabled forge with this number or name. All forges are read in one query, at most one each
    ASKED_AGAIN seconds for unknown names, so strangers who invent names cause no more, and nothing of theirs is cached.
    """
    global _forges
    spelled, at = _forges
    now = time.monotonic()
    if now - at >= (BELIEVED if name in spelled else ASKED_AGAIN):
        rows = list(Forge.objects.filter(enabled=True).values_list("pk", "kind", "name"))
        spelled = {name: (pk, kind) for pk, kind, name in rows} | {str(pk): (pk, kind) for pk, kind, _ in rows}
        _forges = (spelled, now)
    return spelled.get(name)


def known(name: str, *, older_than: float = BELIEVED) -> Known | None:
    """What is known of the forge with this number or name; None if it does not exist or is disabled."""
    if (forge := _forge_of(name)) is None:
        return None
    pk, kind = forge
    now = time.monotonic()
    before = _known.get(pk)
    if before is not None and now - before.at < older_than:
        return before
    rows = WebhookConfig.objects.filter(forge=pk).only("key", "secret", "state", "ends_at", "repository_id", "owner_id")
    secrets = {
        row.key: Secret(row.pk, _sealed(row.secret), row.state, row.ends_at, row.repository_id, row.owner_id) for row in rows
    }
    repositories = _enrolled(forge=pk)
    tokens = {secret.token for secret in secrets.values()}
    opened = {token: value for token in tokens if (value := before.opened.get(token)) is not None} if before else {}
    _known[pk] = found = Known(pk, kind, now, secrets, repositories, opened)
    return found


def _enrolled(**which: int) -> dict[int, Enrolled]:
    rows = Repository.objects.filter(active=True, **which).values_list("forge_repo_id", "pk", "owner_id")
    return {number: Enrolled(pk, owner_id) for number, pk, owner_id in rows}


def _sealed(value: str | Sealed) -> str:
    return value.token if isinstance(value, Sealed) else ""


def signer(name: str, key: str, body: bytes, headers: Mapping[str, str]) -> tuple[Known, Secret] | None:
    """The secret that signed exactly this body, and what is known of the forge; None if no valid secret did.

    The hook's key in the URL says which secret to try. Without a key all valid ones are tried, up to HASHED_AT_MOST.
    """
    if (entry := known(name)) is None or (deliveries := deliveries_of(entry.kind)) is None:
        return None
    claims = [claim.encode("utf-8", "replace") for claim in deliveries.signatures(headers)]
    if not claims:
        return None
    if key and key not in entry.secrets and (entry := known(name, older_than=ASKED_AGAIN)) is None:
        return None
    now = timezone.now()
    tried = [entry.secrets[key]] if key in entry.secrets else [] if key else list(entry.secrets.values())
    if len(tried) > 1 and len(tried) * len(body) > HASHED_AT_MOST:
        return None
    for secret in tried:
        if secret.state == State.ROTATING and secret.ends_at and secret.ends_at <= now:
            continue
        if (opened := _open(entry, secret.token)) is None:
            continue
        right = deliveries.sign(opened, body).encode()
        if any(hmac.compare_digest(right, claim) for claim in claims):
            return entry, secret
    return None


def _open(entry: Known, token: str) -> bytes | None:
    """The decrypted secret, cached because decrypting takes longer than everything else. None if no key decrypts it."""
    opened = entry.opened.get(token)
    if opened is None:
        try:
            opened = decrypt(token).encode() if token else b""
        except SecretUnreadable as error:
            log.error("%s", error)
            opened = b""
        entry.opened[token] = opened
    return opened or None


# --- parsing


class Unreadable(Exception):
    """A body that is not a delivery. The message says why."""


def read(kind: str, event: str, body: bytes | str) -> Heard:
    """Parse a delivery's body, JSON in UTF-8. Raises Unreadable, and nothing else, whatever the body contains."""
    if (deliveries := deliveries_of(kind)) is None:
        raise Unreadable(f"no deliveries are defined for forges of the kind {kind}")
    try:
        data = json.loads(body if isinstance(body, str) else body.decode())
        if not isinstance(data, dict):
            raise Unreadable("invalid JSON: expected an object")
        heard = deliveries.hear(event, data)
    except Garbage as error:
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"invalid JSON: {str(error)[:100]}") from None
    if (heard.comment is not None or not heard.unwanted) and not (heard.number and 0 < heard.number < 2**31):
        raise Unreadable("the number of the pull request is missing or invalid")
    action, title, url = _clean(heard.action, 30), _clean(heard.title, 500), _clean(heard.html_url, 500)
    return replace(heard, action=action, title=title, html_url=url)


def _clean(text: str, length: int) -> str:
    """Text that every database accepts."""
    return text[:length].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


# --- storing


@dataclass(frozen=True)
class Answer:
    """The outcome of a delivery, and why."""

    outcome: Outcome
    reason: str = ""

    @property
    def reported(self) -> str:
        """The reason as reported to the sender, who must not learn which other repositories are watched."""
        return "no repository of this hook" if self.outcome.name == "foreign" else self.reason


def take_in(entry: Known, secret: Secret, headers: Mapping[str, str], body: bytes) -> Answer:
    """Store a correctly signed delivery, unless its id is already known, in one short transaction."""
    deliveries = deliveries_of(entry.kind)
    assert deliveries is not None, "a kind without deliveries has no signatures"
    event = _clean(deliveries.event(headers), 50)
    # Without an id its content identifies it.
    delivery_id = _clean(deliveries.delivery_id(headers), 100) or f"sha256:{hashlib.sha256(body).hexdigest()}"
    row = Delivery(forge_id=entry.forge_id, delivery_id=delivery_id, hook_id=secret.hook_id, event=event)
    try:
        heard = read(entry.kind, event, body)
    except Unreadable as error:
        answer = Answer(OUTCOMES["unreadable"], str(error))
        row.body = _clean(body[:2000].decode("utf-8", "replace"), 2000)
    else:
        row.action, row.number = heard.action, heard.number
        row.repository_id, foreign = _repository(entry, secret, heard)
        if foreign:
            answer = Answer(OUTCOMES["foreign"], foreign)
        elif heard.unwanted:
            answer = Answer(OUTCOMES["unwanted"], heard.unwanted)
        else:
            answer = Answer(OUTCOMES["accepted"])
            row.forge_comment_id = heard.comment.id if heard.comment else None
            # JSON contains no NUL; an unpaired surrogate could only be an escape of six characters.
            row.body = body.decode()
    row.status, row.outcome, row.reason = answer.outcome.status, answer.outcome.kept, _clean(answer.reason, 2000)
    accepted = row.outcome == Delivery.Outcome.ACCEPTED
    if not accepted:
        row.handled_at = row.received_at
    wakes = accepted and _is_to_queue(entry.forge_id)
    # Most deliveries are a single row, so one statement, which is its own transaction.
    with transaction.atomic() if wakes else nullcontext():
        if not insert(row):
            return Answer(OUTCOMES["known"], "already received")
        if wakes:
            _queue(entry.forge_id)
    return answer


#: All but the primary key, and what is always empty in a new row.
FIELDS = [field for field in Delivery._meta.concrete_fields if field.name not in ("id", "comment", "next_try_at")]


@cache
def _statement() -> str:
    names, marks = ", ".join(f'"{field.column}"' for field in FIELDS), ", ".join(["%s"] * len(FIELDS))
    table = Delivery._meta.db_table
    return f'INSERT INTO "{table}" ({names}) VALUES ({marks}) ON CONFLICT ("forge_id", "delivery_id") DO NOTHING'  # noqa: S608


def insert(row: Delivery) -> bool:
    """Insert a row unless its id already exists. Returns whether it was inserted.

    The statement is built once: the receiver would spend most of its time on that.
    """
    values = [getattr(row, field.attname) for field in FIELDS]
    adapt = connection.ops.adapt_datetimefield_value
    values = [adapt(value) if isinstance(value, datetime) else value for value in values]
    with connection.cursor() as cursor:
        cursor.execute(_statement(), values)
        return bool(cursor.rowcount == 1)


def speaks_for(secret: Secret, row: Enrolled) -> bool:
    """Whether a hook covers this repository: as its own hook, or its organisation's. Knowing one hook's secret gives no say
    about other repositories.
    """
    if secret.repository_id is not None:
        return secret.repository_id == row.pk
    return secret.owner_id is not None and secret.owner_id == row.owner_id


def _repository(entry: Known, secret: Secret, heard: Heard) -> tuple[int | None, str]:
    """The row of the repository, which may just have been enrolled; or why this hook has none."""
    name = heard.repo_name or str(heard.repo_id)
    found = entry.repositories.get(heard.repo_id)
    if found is None or not speaks_for(secret, found):
        # It may just have been enrolled, or moved to another owner.
        found = _enrolled(forge=entry.forge_id, forge_repo_id=heard.repo_id).get(heard.repo_id)
    if found is None:
        return None, f"{name} is not enrolled"
    if not speaks_for(secret, found):
        return None, f"{name} is outside this hook's scope: its own repository, or its organisation's repositories"
    return found.pk, ""


def _is_to_queue(forge_id: int) -> bool:
    """Whether no task was queued within QUEUED_AGAIN seconds. A sweep finds what that task misses."""
    return time.monotonic() - _queued.get(forge_id, float("-inf")) >= QUEUED_AGAIN


def _queue(forge_id: int) -> None:
    """Queue the task that processes waiting deliveries."""
    async_task("enrollment.tasks.take_deliveries", save=False, task_name="take deliveries")
    _queued[forge_id] = time.monotonic()


# --- what to do about it


#: A comment older than this only triggers a poll: somebody may be resending old deliveries.
OLD = timedelta(days=1)


@dataclass(frozen=True)
class Decision:
    do: str  #: store, wake, ignore
    reason: str


def decide(heard: Heard, interesting: bool, now: datetime) -> Decision:
    """What to do with a delivery about one of our repositories. `interesting`: whether polling would count its text."""
    comment = heard.comment
    if comment is None and (heard.closed or interesting):
        return Decision(
            "wake", "the pull request was closed" if heard.closed else ("a review, which deliveries report without id and time")
        )
    if comment is None or not interesting:
        return Decision(
            "ignore", "this comment starts nothing: it has no command, is cc-ci's own, or is older than the enrolment"
        )
    if heard.doubts:
        return Decision("wake", heard.doubts)
    if heard.action != "created" or comment.updated_at != comment.created_at:
        return Decision("wake", "the comment was edited")
    if comment.created_at < now - OLD:
        return Decision("wake", "the comment is older than a day")
    if comment.created_at > now + AHEAD:
        return Decision("wake", "the comment's time is in the future")
    return Decision("store", "a new comment")
