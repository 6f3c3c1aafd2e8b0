"""Signed delivery -> Delivery row -> Comment row, or a look at the pull request.

A request is judged in the order of OUTCOMES, by what is cheapest first: by its head before its body is read, and nothing of that
is parsed before its signature is found right. The forge waits meanwhile, and gives up after some seconds: one row is written, and
the work is left to a task.

A delivery decides nothing. It brings the very Comment row that polling would have made, or it makes the poller look at that
pull request now; what is lost or doubtful is found by polling.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from django.db import connection, transaction
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import Sealed, SecretUnreadable, decrypt
from enrollment.clients import DELIVERIES
from enrollment.clocks import AHEAD
from enrollment.forges.base import Garbage, Heard
from enrollment.hook_models import Delivery
from enrollment.hook_states import State
from enrollment.models import Forge, Repository, WebhookConfig

log = logging.getLogger(__name__)

#: Bytes of a delivery. A comment with all that stands around it is some kilobytes.
MAX_BODY = 1024 * 1024
#: Seconds for which secrets and repositories are believed without asking the database again.
BELIEVED = 5.0
#: A stranger who makes up keys makes us ask the database no more often than this.
ASKED_AGAIN = 1.0
#: Where a URL names no hook, each secret is tried; so many bytes may be hashed for that, about 50 ms.
HASHED_AT_MOST = 32 * 1024 * 1024
#: One task takes all deliveries that wait; in a burst it is not queued for each.
QUEUED_AGAIN = 0.2


@dataclass(frozen=True)
class Outcome:
    """A row of the table of outcomes. `kept` says what the Delivery row will say; empty where there is none."""

    name: str
    status: int
    when: str
    kept: str = ""


#: Every request gets one of these. In this order; docs/webhooks.md shows the table.
OUTCOMES: dict[str, Outcome] = {
    row.name: row
    for row in (
        Outcome("method", 405, "It is no POST."),
        Outcome("type", 415, "Its content type is not `application/json`."),
        Outcome("large", 413, "Its body is larger than 1 MiB."),
        Outcome("unsigned", 401, "No signature, a wrong one, or one with a secret that counts no more."),
        Outcome("unreadable", 400, "Rightly signed, and no delivery that can be understood.", "rejected"),
        Outcome("known", 200, "Rightly signed, and a delivery of this id came before. Nothing more happens."),
        Outcome("foreign", 404, "Rightly signed, about a repository that is not enrolled, or not this hook's.", "foreign"),
        Outcome("unwanted", 204, "Rightly signed, and nothing that cc-ci waits for.", "unwanted"),
        Outcome("accepted", 202, "Rightly signed, a comment written or edited on a pull request.", "accepted"),
        Outcome("unwell", 503, "The database cannot be reached, or it is a fault of ours. Polling will find what was said."),
    )
}


def judge_head(method: str, headers: Mapping[str, str]) -> Outcome | None:
    """What is wrong with a request before its body is read, if anything. Nobody's body is waited for who does not sign it."""
    if method != "POST":
        return OUTCOMES["method"]
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return OUTCOMES["type"]
    length = headers.get("Content-Length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY):
        return OUTCOMES["large"]
    if not any(kind.signatures(headers) for kind in DELIVERIES.values()):
        return OUTCOMES["unsigned"]
    return None


def guard(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """The same for the web server, which has not read the body yet."""
    wrong = judge_head(method, headers)
    return (wrong.status, f"{wrong.name}\n") if wrong else None


# --- who signed it


@dataclass(frozen=True)
class Secret:
    """A secret that counts, sealed, whose it is, and what that hook speaks for: a repository's row, or all of an owner's."""

    hook_id: int
    token: str
    state: str
    ends_at: datetime | None
    repository_id: int | None
    owner_id: int | None


@dataclass(frozen=True)
class Enrolled:
    """A repository that is watched."""

    pk: int
    owner_id: int | None


@dataclass(frozen=True)
class Known:
    """What the receiver knows of a forge without asking the database each time."""

    forge_id: int
    kind: str
    at: float
    secrets: Mapping[str, Secret]
    repositories: Mapping[int, Enrolled]  #: by the forge's id
    #: Plain secrets by sealed ones, as far as they were needed. Values are put in and taken out, and never gone through: it is
    #: shared by threads.
    opened: dict[str, bytes]


#: The forges by number and by name, as an address may spell them, and when the database was asked. Replaced whole.
_forges: tuple[Mapping[str, tuple[int, str]], float] = ({}, float("-inf"))
#: By a forge's number in the database, so there are never more than forges, whatever strangers make up.
_known: dict[int, Known] = {}
_queued: dict[int, float] = {}


def forget() -> None:
    """Ask the database anew at the next delivery; for tests, and where rows were just changed."""
    global _forges
    _forges = ({}, float("-inf"))
    _known.clear()
    _queued.clear()


def _forge_of(name: str) -> tuple[int, str] | None:
    """Number and kind of the forge that is switched on and has this number or name. All are asked for at once: what strangers
    make up costs a question each ASKED_AGAIN, however many they are, and nothing of it is kept."""
    global _forges
    spelled, at = _forges
    now = time.monotonic()
    if now - at >= (BELIEVED if name in spelled else ASKED_AGAIN):
        rows = list(Forge.objects.filter(enabled=True).values_list("pk", "kind", "name"))
        spelled = {name: (pk, kind) for pk, kind, name in rows} | {str(pk): (pk, kind) for pk, kind, _ in rows}
        _forges = (spelled, now)
    return spelled.get(name)


def known(name: str, *, older_than: float = BELIEVED) -> Known | None:
    """What is known of the forge with this number or name; None where there is none, or it is switched off."""
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
    """Whose secret signed this very body, and what is known of the forge; None for a stranger.

    The hook's key in the URL says which secret to try. Without one all that count are tried, as far as HASHED_AT_MOST goes.
    """
    if (entry := known(name)) is None or (kind := DELIVERIES.get(entry.kind)) is None:
        return None
    claims = [claim.encode("utf-8", "replace") for claim in kind.signatures(headers)]
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
        right = hmac.new(opened, body, hashlib.sha256).hexdigest().encode()
        if any(hmac.compare_digest(right, claim) for claim in claims):
            return entry, secret
    return None


def _open(entry: Known, token: str) -> bytes | None:
    """The plain secret; kept, since opening one takes longer than all the rest. None where no key opens it."""
    opened = entry.opened.get(token)
    if opened is None:
        try:
            opened = decrypt(token).encode() if token else b""
        except SecretUnreadable as error:
            log.error("%s", error)
            opened = b""
        entry.opened[token] = opened
    return opened or None


# --- what it says


class Unreadable(Exception):
    """A body that is no delivery. The message says why."""


def read(kind: str, event: str, body: bytes | str) -> Heard:
    """Read a delivery's body, JSON in UTF-8. Raises Unreadable, and nothing else, whatever stands there."""
    if (deliveries := DELIVERIES.get(kind)) is None:
        raise Unreadable(f"it is not known what a forge of the kind {kind} delivers")
    try:
        data = json.loads(body if isinstance(body, str) else body.decode())
        if not isinstance(data, dict):
            raise Unreadable("no JSON object")
        heard = deliveries.hear(event, data)
    except Garbage as error:
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"no JSON: {str(error)[:100]}") from None
    if heard.comment is not None and not (heard.number and 0 < heard.number < 2**31):
        raise Unreadable("no number of a pull request")
    action, title, url = _clean(heard.action, 30), _clean(heard.title, 500), _clean(heard.html_url, 500)
    return replace(heard, action=action, title=title, html_url=url)


def _clean(text: str, length: int) -> str:
    """Text that every database takes."""
    return text[:length].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


# --- writing it down


@dataclass(frozen=True)
class Answer:
    """What a delivery came to, and why."""

    outcome: Outcome
    reason: str = ""

    @property
    def told(self) -> str:
        """The reason, as far as the sender is told: which repositories are watched is nothing to one that has none of them."""
        return "no repository of this hook" if self.outcome.name == "foreign" else self.reason


def take_in(entry: Known, secret: Secret, headers: Mapping[str, str], body: bytes) -> Answer:
    """Write down a delivery that is rightly signed: one short transaction, in which its id is found known or new."""
    kind = DELIVERIES[entry.kind]
    event = _clean(kind.event(headers), 50)
    # Without an id it is known by what it says.
    delivery_id = _clean(kind.delivery_id(headers), 100) or f"sha256:{hashlib.sha256(body).hexdigest()}"
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
            # JSON holds no NUL; half a surrogate could only stand in it as six plain characters.
            row.body = body.decode()
    row.status, row.outcome, row.reason = answer.outcome.status, answer.outcome.kept, _clean(answer.reason, 2000)
    accepted = row.outcome == Delivery.Outcome.ACCEPTED
    if not accepted:
        row.handled_at = row.received_at
    wakes = accepted and _is_to_queue(entry.forge_id)
    # Most deliveries are one row and nothing else, and so one statement, which is a transaction by itself.
    with transaction.atomic() if wakes else nullcontext():
        if not insert(row):
            return Answer(OUTCOMES["known"], "it came before")
        if wakes:
            _queue(entry.forge_id)
    return answer


#: All but the number, and what is always empty in a new row.
FIELDS = [field for field in Delivery._meta.concrete_fields if field.name not in ("id", "comment", "next_try_at")]


@cache
def _statement() -> str:
    names, marks = ", ".join(f'"{field.column}"' for field in FIELDS), ", ".join(["%s"] * len(FIELDS))
    table = Delivery._meta.db_table
    return f'INSERT INTO "{table}" ({names}) VALUES ({marks}) ON CONFLICT ("forge_id", "delivery_id") DO NOTHING'  # noqa: S608


def insert(row: Delivery) -> bool:
    """Insert a row, unless there is one of its id already. Returns whether it did.

    One statement that is made once: this is where the receiver would spend most of its time.
    """
    values = [getattr(row, field.attname) for field in FIELDS]
    adapt = connection.ops.adapt_datetimefield_value
    values = [adapt(value) if isinstance(value, datetime) else value for value in values]
    with connection.cursor() as cursor:
        cursor.execute(_statement(), values)
        return bool(cursor.rowcount == 1)


def speaks_for(secret: Secret, row: Enrolled) -> bool:
    """Whether a hook tells of this repository: it is the hook's own, or its organisation's. Who has one hook's secret says
    nothing of other repositories with it."""
    if secret.repository_id is not None:
        return secret.repository_id == row.pk
    return secret.owner_id is not None and secret.owner_id == row.owner_id


def _repository(entry: Known, secret: Secret, heard: Heard) -> tuple[int | None, str]:
    """The row of the repository, enrolled a moment ago perhaps; or why there is none that this hook speaks for."""
    name = heard.repo_name or str(heard.repo_id)
    found = entry.repositories.get(heard.repo_id)
    if found is None or not speaks_for(secret, found):
        # It may have been enrolled, or have come to another owner, a moment ago.
        found = _enrolled(forge=entry.forge_id, forge_repo_id=heard.repo_id).get(heard.repo_id)
    if found is None:
        return None, f"{name} is not enrolled"
    if not speaks_for(secret, found):
        return None, f"{name} is not this hook's: it speaks for its own repository, or for those of its organisation"
    return found.pk, ""


def _is_to_queue(forge_id: int) -> bool:
    """Whether no task was queued this very moment. A sweep finds what that one misses."""
    return time.monotonic() - _queued.get(forge_id, float("-inf")) >= QUEUED_AGAIN


def _queue(forge_id: int) -> None:
    """Queue the task that takes what waits."""
    async_task("enrollment.tasks.take_deliveries", save=False, task_name="take deliveries")
    _queued[forge_id] = time.monotonic()


# --- what to do about it


#: A comment older than this only wakes the poller: somebody may be sending old deliveries again.
OLD = timedelta(days=1)


@dataclass(frozen=True)
class Decision:
    do: str  #: store, wake, ignore
    reason: str


def decide(heard: Heard, interesting: bool, now: datetime) -> Decision:
    """What a delivery of one of our repositories leads to. `interesting` is polling's own rule for what may start something."""
    comment = heard.comment
    if comment is None or not interesting:
        return Decision("ignore", "its comment starts nothing: no command, our own, or older than the enrolment")
    if heard.doubts:
        return Decision("wake", heard.doubts)
    if heard.action != "created" or comment.updated_at != comment.created_at:
        return Decision("wake", "the comment was edited")
    if comment.created_at < now - OLD:
        return Decision("wake", "the comment is older than a day")
    if comment.created_at > now + AHEAD:
        return Decision("wake", "the comment is from the future")
    return Decision("store", "a new comment")
