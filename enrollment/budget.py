"""Kind to a forge: how many requests a minute, for what, and none at all while it is down. Shared by all processes.

`Counter` stands before each request of a client (`forges.base.Gate`). What it decides is in pure functions over plain values:
`may_ask` shares the budget of a minute, `standing` is the circuit. The state is one row for each forge (`Traffic`); what the
requests were and took is added up in memory and written now and then (`RequestCount`).

A few things that always fail (a pull request whose comments are 500) do not make a forge down: before it is left alone it is
asked something that depends on none of them.

A minute is any sixty seconds, not one of the clock's: requests are counted in slices of a few seconds, and those of the last
minute are added up, so that there is no burst when a new minute begins.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest
from django.utils import timezone

from controlplane import backoff
from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import Ask, CircuitOpen, Forbidden, ForgeError, OverBudget, RateLimited, Unavailable
from enrollment.models import Forge, RequestCount, Traffic

log = logging.getLogger(__name__)


class Purpose(StrEnum):
    """What a client is for. Each has a share of the budget that no other can take."""

    ANSWERS = "answers"  #: handling comments: who asks, what was pushed
    REPORTS = "reports"  #: writing what people wait for
    POLLING = "polling"
    PEOPLE = "people"  #: somebody waits at a page or a command
    UPKEEP = "upkeep"  #: webhooks, rights, abilities, topics


#: The part of a minute's budget that is kept for a purpose, also while others would take more. The rest is for who comes first.
KEPT: dict[str, float] = {
    Purpose.ANSWERS: 0.2,
    Purpose.REPORTS: 0.25,
    Purpose.POLLING: 0.2,
    Purpose.PEOPLE: 0.1,
    Purpose.UPKEEP: 0.05,
}
#: Seconds of a slice, and how many slices a minute has.
SLICE, SLICES = 5, 12
#: Requests that a repository always has within a purpose's share, however many others ask: enough for one piece of work.
ONE_PIECE = 10

#: Failures in a row after which the forge itself is asked (the circuit opens if that fails, too), the first wait, and how long a
#: trial may take before another may try.
OPENS_AFTER = 8
FIRST_WAIT = timedelta(seconds=30)
TRIAL = timedelta(seconds=60)
#: No longer than this, whatever the forge asks for.
LONGEST_PAUSE = timedelta(hours=1)

#: Days that the table of requests is kept.
KEEP_DAYS = 30

Used = Mapping[str, Mapping[str, int]]

#: Seconds that a command, at which somebody looks, waits for its share instead of failing. Tasks never wait.
_patience: ContextVar[float] = ContextVar("patience", default=0.0)
#: Whether the request under way is the one that finds out whether a forge, where much has failed, is down itself.
_itself: ContextVar[bool] = ContextVar("itself", default=False)


@contextmanager
def patient(seconds: float = 600) -> Iterator[None]:
    """Within this block requests wait until the budget has room again, for so long in all at most."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


# --- decisions


def may_ask(used: Used, budget: int, purpose: str, repository: str = "") -> bool:
    """Whether a request fits into the last minute. Pure.

    `used` is what was asked in it: {purpose: {repository: requests}}. A purpose may take what is left when the unused shares of
    the others are set aside; a repository no more than its part of that, where there is always a part for one more who has not
    asked yet.
    """
    spent = {name: sum(used.get(name, {}).values()) for name in {*KEPT, *used}}
    aside = sum(max(0, int(budget * KEPT.get(name, 0)) - count) for name, count in spent.items() if name != purpose)
    left = budget - sum(spent.values()) - aside
    if left <= 0:
        return False
    if not repository:
        return True
    mine = used.get(purpose, {})
    others = {name for name in mine if name and name != repository}
    part = (left + spent.get(purpose, 0)) // (len(others) + 2)
    return mine.get(repository, 0) < max(ONE_PIECE, part)


def last_minute(slices: Mapping[str, Used], moment: int) -> dict[int, Used]:
    """The slices that reach into the minute before the slice `moment`, that one included. Pure.

    The oldest is counted whole, so it is never less than a minute. What lies behind `moment` was counted before our clock was
    set back, and is forgotten.
    """
    return {int(key): used for key, used in slices.items() if moment - SLICES <= int(key) <= moment}


def add_up(slices: Iterable[Used]) -> dict[str, dict[str, int]]:
    """What was asked in all of them. Pure."""
    total: dict[str, dict[str, int]] = {}
    for used in slices:
        for purpose, rows in used.items():
            mine = total.setdefault(purpose, {})
            for repository, count in rows.items():
                mine[repository] = mine.get(repository, 0) + count
    return total


@dataclass(frozen=True)
class Standing:
    """Whether a forge may be asked now: "go", "try" (one request, to see whether it is back), "paused" or "open"."""

    word: str
    until: datetime | None = None


def standing(row: Traffic, now: datetime) -> Standing:
    """The circuit, and what the forge asked us to wait for. Pure."""
    if row.paused_until and row.paused_until > now:
        return Standing("paused", row.paused_until)
    if not row.opened:
        return Standing("go")
    if row.open_until and row.open_until > now:
        return Standing("open", row.open_until)
    if row.trial_until and row.trial_until > now:
        return Standing("open", row.trial_until)
    return Standing("try")


def words_on(row: Traffic | None, now: datetime) -> str:
    """How a forge's circuit stands, for people; empty when all is well."""
    if row is None:
        return ""
    now_standing = standing(row, now)
    if now_standing.word == "paused" and now_standing.until:
        return f"the forge asked us to wait until {now_standing.until:%H:%M:%S}; nothing is asked before that"
    if now_standing.word == "go":
        return ""
    until = f"until {now_standing.until:%H:%M:%S}, then one request tries" if now_standing.until else "; the next request tries"
    return f"it failed {row.failures} times in a row and is left alone {until}. Last: {row.last_failure}"


# --- the gate


class Counter:
    """The gate before one client's requests: it may hold one back, and counts what went through."""

    def __init__(self, forge_id: int, purpose: Purpose) -> None:
        self.forge_id, self.purpose = forge_id, purpose
        self._row: Traffic | None = None  #: as it was when the request under way was let through
        self._trial = False
        self._seen: dict[tuple[str, str], bool] = {}  #: what the rights table was told of

    def enter(self, ask: Ask) -> None:
        end = time.monotonic() + _patience.get()
        while True:
            try:
                self._enter(ask)
                return
            except OverBudget as error:
                wait = error.retry_after or 1.0
                if time.monotonic() + wait > end:
                    raise
                time.sleep(wait)

    def _enter(self, ask: Ask) -> None:
        try:
            held_back = self._decide(ask)
        except DatabaseError as error:
            # Better one request too many than a comment that nobody answers.
            log.warning("the budget could not be looked at: %s", error)
            return
        if held_back:
            raise held_back

    def _decide(self, ask: Ask) -> ForgeError | None:
        now = timezone.now()
        budget = settings.CC_CI.requests_per_minute
        # The row is locked only where it is counted in; without a budget it is only looked at.
        with transaction.atomic() if budget else nullcontext():
            row = _row_of(self.forge_id, lock=bool(budget))
            self._row, self._trial = row, False
            if row is None:
                return None  # the forge was removed a moment ago
            found = standing(row, now)
            if found.word in ("paused", "open"):
                return _held_back(found, row, now)
            if found.word == "try":
                free = Traffic.objects.filter(pk=row.pk, opened=row.opened).filter(Q(trial_until=None) | Q(trial_until__lte=now))
                if not free.update(trial_until=now + TRIAL):
                    return _held_back(Standing("open", now + TRIAL), row, now)
                self._trial = True
            return self._count(row, ask, budget, now) if budget else None

    def _count(self, row: Traffic, ask: Ask, budget: int, now: datetime) -> ForgeError | None:
        moment = int(now.timestamp()) // SLICE
        slices = last_minute(row.used, moment)
        rows = Traffic.objects.filter(pk=row.pk)
        if not may_ask(add_up(slices.values()), budget, self.purpose, ask.repository):
            if row.refused_at is None or now - row.refused_at > timedelta(seconds=10):
                rows.update(refused_at=now)
            # Until the oldest slice is out; there is one, or the budget is none at all.
            wait = (min(slices, default=moment) + SLICES + 1) * SLICE - now.timestamp()
            return OverBudget(f"the budget of {budget} requests a minute for {self.purpose} is used up", retry_after=wait)
        now_used = {purpose: dict(counts) for purpose, counts in slices.get(moment, {}).items()}
        mine = now_used.setdefault(self.purpose.value, {})
        mine[ask.repository] = mine.get(ask.repository, 0) + 1
        rows.update(used={str(key): counts for key, counts in {**slices, moment: now_used}.items()})
        return None

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        failed = isinstance(error, Unavailable | RateLimited)
        tally.add(self.forge_id, ask.kind, seconds, failed)
        try:
            self._note(ask, error)
            tally.write_if_due()
        except DatabaseError as trouble:
            log.warning("a request could not be counted: %s", trouble)

    def _note(self, ask: Ask, error: ForgeError | None) -> None:
        row, now = self._row, timezone.now()
        if row is None:
            return
        if (row.failures or row.opened) and not isinstance(error, Unavailable):
            # It answers, if only with a refusal.
            Traffic.objects.filter(pk=row.pk).update(failures=0, opened=0, open_until=None, trial_until=None, last_failure="")
        if error and error.retry_after and (isinstance(error, RateLimited) or error.status == 503):
            until = now + min(timedelta(seconds=error.retry_after), LONGEST_PAUSE)
            rows = Traffic.objects.filter(pk=row.pk).filter(Q(paused_until=None) | Q(paused_until__lt=until))
            rows.update(paused_until=until, last_failure=str(error)[:500])
        if isinstance(error, Unavailable):
            self._note_failure(row, ask, error, now)
        self._note_right(ask, error)

    def _note_failure(self, row: Traffic, ask: Ask, error: Unavailable, now: datetime) -> None:
        rows = Traffic.objects.filter(pk=row.pk)
        rows.update(failures=F("failures") + 1, last_failure=str(error)[:500])
        if self._trial and ask.repository:
            # What failed may be this repository's own trouble: the trial goes over to a question about none.
            if rows.filter(opened=row.opened).update(trial_until=None):
                self._ask_itself()
        elif self._trial:
            wait = backoff.wait(row.opened, FIRST_WAIT)
            rows.filter(opened=row.opened).update(opened=F("opened") + 1, open_until=now + wait, trial_until=None)
        elif _itself.get():
            until = now + backoff.wait(0, FIRST_WAIT)
            if rows.filter(opened=0, failures__gte=OPENS_AFTER).update(opened=1, open_until=until, trial_until=None):
                log.warning("%s failed %d times in a row and is left alone for a while: %s", row.forge, row.failures + 1, error)
        else:
            # Of all processes one asks; the others go on meanwhile.
            free = rows.filter(opened=0, failures__gte=OPENS_AFTER).filter(Q(trial_until=None) | Q(trial_until__lte=now))
            if free.update(trial_until=now + TRIAL):
                self._ask_itself()
                rows.filter(opened=0).update(trial_until=None)

    def _ask_itself(self) -> None:
        """Ask the forge who we are, once: that depends on no repository, and on its database (the version does not). How it goes
        is noted like any request: an answer ends the row of failures, and none opens the circuit. Held back by the budget it
        tells nothing, and is asked at the next failure."""
        from enrollment.clients import client_for  # which makes our like

        forge = Forge.objects.filter(pk=self.forge_id).first()
        if forge is None:
            return
        itself, patience = _itself.set(True), _patience.set(0.0)
        try:
            with suppress(ForgeError, SecretUnreadable):
                client_for(forge, self.purpose).whoami()
        finally:
            _itself.reset(itself)
            _patience.reset(patience)

    def _note_right(self, ask: Ask, error: ForgeError | None) -> None:
        """What was written, or refused, shows a right that cannot be asked for without writing."""
        from enrollment import rights  # which is about forges, and so knows us

        allowed = error is None
        if not (allowed or isinstance(error, Forbidden)) or ask.kind not in rights.SHOWN_BY:
            return
        if self._seen.get((ask.kind, ask.repository)) is not allowed:
            self._seen[(ask.kind, ask.repository)] = allowed
            rights.note_use(self.forge_id, ask.repository, rights.SHOWN_BY[ask.kind], allowed, str(error or ""))


def _row_of(forge_id: int, lock: bool) -> Traffic | None:
    rows = Traffic.objects.select_for_update() if lock else Traffic.objects.all()
    row = rows.filter(forge=forge_id).first()
    if row is None and Forge.objects.filter(pk=forge_id).exists():
        try:
            with transaction.atomic():
                Traffic.objects.create(forge_id=forge_id)
        except IntegrityError:
            pass  # another process was first
        row = rows.filter(forge=forge_id).first()
    return row


def _held_back(found: Standing, row: Traffic, now: datetime) -> ForgeError:
    wait = max(1.0, (found.until - now).total_seconds()) if found.until else 1.0
    if found.word == "paused":
        return RateLimited(f"the forge asked us to wait for another {wait:.0f} s ({row.last_failure})"[:500], retry_after=wait)
    text = f"it failed {row.failures} times in a row and is left alone for another {wait:.0f} s ({row.last_failure})"
    return CircuitOpen(text[:500], retry_after=wait)


def forgive(forge: Forge) -> None:
    """A person says that it is to be asked now, whatever happened before."""
    Traffic.objects.filter(forge=forge).update(
        failures=0, opened=0, open_until=None, trial_until=None, paused_until=None, last_failure=""
    )


# --- what the requests were


@dataclass
class _Sum:
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


@dataclass
class Tally:
    """Requests of this process that are not written yet. Written every few seconds; a process that is killed loses those."""

    every: float = 5.0
    most: int = 50
    sums: dict[tuple[int, datetime, str], _Sum] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)
    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, forge_id: int, kind: str, seconds: float, failed: bool) -> None:
        hour = timezone.now().replace(minute=0, second=0, microsecond=0)
        with self.lock:
            if self.pid != os.getpid():
                self.pid, self.sums = os.getpid(), {}  # those are the parent's to write
            found = self.sums.setdefault((forge_id, hour, kind), _Sum())
            found.requests += 1
            found.errors += failed
            found.seconds += seconds
            found.slowest = max(found.slowest, seconds)

    def write_if_due(self) -> None:
        count = sum(found.requests for found in list(self.sums.values()))
        if count >= self.most or time.monotonic() - self.written > self.every:
            self.write()

    def write(self) -> None:
        """Add what there is to the rows."""
        with self.lock:
            sums, self.sums, self.written = self.sums, {}, time.monotonic()
        there = set(Forge.objects.filter(pk__in={key[0] for key in sums}).values_list("pk", flat=True)) if sums else set()
        for (forge_id, hour, kind), found in sums.items():
            if forge_id in there:
                _add(forge_id, hour, kind, found)

    def drop(self) -> None:
        """Forget what there is."""
        with self.lock:
            self.sums = {}


tally = Tally()


def _add(forge_id: int, hour: datetime, kind: str, found: _Sum) -> None:
    rows = RequestCount.objects.filter(forge=forge_id, hour=hour, kind=kind)
    for _ in range(2):
        if rows.update(
            requests=F("requests") + found.requests,
            errors=F("errors") + found.errors,
            seconds=F("seconds") + found.seconds,
            slowest=Greatest(F("slowest"), found.slowest),
        ):
            return
        try:
            with transaction.atomic():
                RequestCount.objects.create(forge_id=forge_id, hour=hour, kind=kind, **vars(found))
            return
        except IntegrityError:
            continue  # another process made it in this very moment


def drop_old() -> int:
    """Drop rows that are older than KEEP_DAYS. Returns how many."""
    tally.write()
    return RequestCount.objects.filter(hour__lt=timezone.now() - timedelta(days=KEEP_DAYS)).delete()[0]
