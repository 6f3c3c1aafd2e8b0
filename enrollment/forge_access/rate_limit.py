"""Rate limiting and circuit breaking for requests to a forge, shared by all processes.

`RateLimiter` stands before each request of a client (`forges.base.Gate`). Decisions are pure functions over plain values:
`may_ask` shares out the budget of a minute, `circuit_state` is the circuit. The state is one row per forge (`Traffic`);
statistics on requests are summed in memory and written periodically (`RequestCount`).

A few requests that always fail (a pull request whose comments return 500) do not make a forge count as down: before the
circuit opens, the forge is asked something that depends on none of them.

A minute is any sixty seconds, not a clock minute: requests are counted in slices of a few seconds, and those of the last
minute are summed, so that no burst follows when a new minute begins.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from enrollment.forge_access import permissions
from enrollment.forges.base import Ask, CircuitOpen, Forbidden, ForgeError, OutOfTime, OverBudget, RateLimited, Unavailable
from enrollment.models import Forge, RequestCount, Traffic

log = logging.getLogger(__name__)


class Purpose(StrEnum):
    """What a client is for. Each purpose has a share of the budget that no other can use."""

    ANSWERS = "answers"  #: handling comments: who asks, what was pushed
    REPORTS = "reports"  #: writing what people wait for
    POLLING = "polling"
    PEOPLE = "people"  #: somebody waits at a page or a command
    UPKEEP = "upkeep"  #: webhooks, permissions, capabilities, topics


#: The part of a minute's budget reserved for a purpose. The rest goes to whoever comes first.
KEPT: dict[str, float] = {
    Purpose.ANSWERS: 0.2,
    Purpose.REPORTS: 0.25,
    Purpose.POLLING: 0.2,
    Purpose.PEOPLE: 0.1,
    Purpose.UPKEEP: 0.05,
}
#: Seconds of a slice, and how many slices a minute has.
SLICE, SLICES = 5, 12
#: Requests that a repository always gets within a purpose's share, however many others ask: enough for one piece of work.
ONE_PIECE = 10

#: Failures in a row after which the forge itself is asked (the circuit opens if that fails, too), the first wait, and how long a
#: trial may take before another may try.
OPENS_AFTER = 8
FIRST_WAIT = timedelta(seconds=30)
TRIAL = timedelta(seconds=60)
#: The longest pause, whatever the forge asks for.
LONGEST_PAUSE = timedelta(hours=1)

#: Days that request statistics are kept.
KEEP_DAYS = 30

Used = Mapping[str, Mapping[str, int]]

#: Seconds that an interactive command waits for its share instead of failing. Tasks never wait.
_patience: ContextVar[float] = ContextVar("patience", default=0.0)
#: When the last request may begin, by the monotonic clock.
_until: ContextVar[float] = ContextVar("until", default=math.inf)
#: Whether the current request is the one that finds out whether a failing forge is down.
_itself: ContextVar[bool] = ContextVar("itself", default=False)


@contextmanager
def patient(seconds: float = 600) -> Iterator[None]:
    """Within this block requests wait for room in the budget, `seconds` in all at most."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within this block no request is begun after so many seconds: somebody waits at a page, which has one thread of few.

    Each request has its own timeout, but there may be any number, such as the pages of a long list.
    """
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


# --- decisions


def may_ask(used: Used, budget: int, purpose: str, repository: str = "") -> bool:
    """Whether a request fits into the last minute. Pure.

    `used` holds that minute's requests: {purpose: {repository: requests}}. A purpose may use what is left once the unused
    shares of the others are set aside; a repository no more than its part of that, where one part is kept for a repository
    that has not asked yet.
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
    """The slices of the minute up to and including the slice `moment`. Pure.

    The oldest counts in full, so this is never less than a minute. Slices after `moment` were counted before our clock was set
    back, and are dropped.
    """
    return {int(key): used for key, used in slices.items() if moment - SLICES <= int(key) <= moment}


def add_up(slices: Iterable[Used]) -> dict[str, dict[str, int]]:
    """The sum of the slices. Pure."""
    total: dict[str, dict[str, int]] = {}
    for used in slices:
        for purpose, rows in used.items():
            mine = total.setdefault(purpose, {})
            for repository, count in rows.items():
                mine[repository] = mine.get(repository, 0) + count
    return total


@dataclass(frozen=True)
class CircuitState:
    """Whether a forge may be asked now: "go", "try" (one request, to see whether it is back), "paused" or "open"."""

    word: str
    until: datetime | None = None


def circuit_state(row: Traffic, now: datetime) -> CircuitState:
    """The circuit, and any pause that the forge requested. Pure."""
    if row.paused_until and row.paused_until > now:
        return CircuitState("paused", row.paused_until)
    if not row.opened:
        return CircuitState("go")
    if row.open_until and row.open_until > now:
        return CircuitState("open", row.open_until)
    if row.trial_until and row.trial_until > now:
        return CircuitState("open", row.trial_until)
    return CircuitState("try")


def circuit_message(row: Traffic | None, now: datetime) -> str:
    """A message about a forge's circuit; empty if requests are sent normally."""
    if row is None:
        return ""
    state = circuit_state(row, now)
    if state.word == "paused" and state.until:
        return f"the forge asked us to wait until {state.until:%H:%M:%S}; no requests before then"
    if state.word == "go":
        return ""
    until = f"no requests until {state.until:%H:%M:%S}, then one request tries" if state.until else "the next request tries"
    return f"{row.failures} requests in a row failed; {until}. Last: {row.last_failure}"


# --- the gate


class RateLimiter:
    """The gate before one client's requests: it may hold one back, and counts those it lets through."""

    def __init__(self, forge_id: int, purpose: Purpose, whoami: Callable[[], object]) -> None:
        self.forge_id, self.purpose = forge_id, purpose
        self._whoami = whoami  #: asks the forge who we are, through its own limiter
        self._row: Traffic | None = None  #: as of when the current request was let through
        self._trial = False
        self._seen: dict[tuple[str, str], bool] = {}  #: what was already recorded as a permission

    def enter(self, ask: Ask) -> None:
        if time.monotonic() > _until.get():
            raise OutOfTime("the forge took all the time there was for this")
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
            # Better one request too many than an unanswered comment.
            log.warning("could not read the budget: %s", error)
            return
        if held_back:
            raise held_back

    def _decide(self, ask: Ask) -> ForgeError | None:
        now = timezone.now()
        budget = settings.CC_CI.requests_per_minute
        # The row is locked only to count in it; without a budget it is only read.
        with transaction.atomic() if budget else nullcontext():
            row = _row_of(self.forge_id, lock=bool(budget))
            self._row, self._trial = row, False
            if row is None:
                return None  # the forge was just removed
            found = circuit_state(row, now)
            if found.word in ("paused", "open"):
                return _held_back(found, row, now)
            if found.word == "try":
                free = Traffic.objects.filter(pk=row.pk, opened=row.opened).filter(Q(trial_until=None) | Q(trial_until__lte=now))
                if not free.update(trial_until=now + TRIAL):
                    return _held_back(CircuitState("open", now + TRIAL), row, now)
                self._trial = True
            return self._count(row, ask, budget, now) if budget else None

    def _count(self, row: Traffic, ask: Ask, budget: int, now: datetime) -> ForgeError | None:
        moment = int(now.timestamp()) // SLICE
        slices = last_minute(row.used, moment)
        rows = Traffic.objects.filter(pk=row.pk)
        if not may_ask(add_up(slices.values()), budget, self.purpose, ask.repository):
            if row.refused_at is None or now - row.refused_at > timedelta(seconds=10):
                rows.update(refused_at=now)
            # Until the oldest slice expires; there is one, unless the budget is zero.
            wait = (min(slices, default=moment) + SLICES + 1) * SLICE - now.timestamp()
            return OverBudget(f"the budget of {budget} requests a minute for {self.purpose} is used up", retry_after=wait)
        now_used = {purpose: dict(counts) for purpose, counts in slices.get(moment, {}).items()}
        mine = now_used.setdefault(self.purpose.value, {})
        mine[ask.repository] = mine.get(ask.repository, 0) + 1
        rows.update(used={str(key): counts for key, counts in {**slices, moment: now_used}.items()})
        return None

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        failed = isinstance(error, Unavailable | RateLimited)
        request_stats.add(self.forge_id, ask.kind, seconds, failed)
        try:
            self._note(ask, error)
            request_stats.write_if_due()
        except DatabaseError as trouble:
            log.warning("could not count a request: %s", trouble)

    def _note(self, ask: Ask, error: ForgeError | None) -> None:
        row, now = self._row, timezone.now()
        if row is None:
            return
        if (row.failures or row.opened) and not isinstance(error, Unavailable):
            # It answered, if only with a refusal.
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
            # This may be the repository's own failure: try again with a request that concerns no repository.
            if rows.filter(opened=row.opened).update(trial_until=None):
                self._ask_itself()
        elif self._trial:
            wait = backoff.wait(row.opened, FIRST_WAIT)
            rows.filter(opened=row.opened).update(opened=F("opened") + 1, open_until=now + wait, trial_until=None)
        elif _itself.get():
            until = now + backoff.wait(0, FIRST_WAIT)
            if rows.filter(opened=0, failures__gte=OPENS_AFTER).update(opened=1, open_until=until, trial_until=None):
                log.warning("%s failed %d times in a row; pausing requests: %s", row.forge, row.failures + 1, error)
        else:
            # One process asks; the others continue meanwhile.
            free = rows.filter(opened=0, failures__gte=OPENS_AFTER).filter(Q(trial_until=None) | Q(trial_until__lte=now))
            if free.update(trial_until=now + TRIAL):
                self._ask_itself()
                rows.filter(opened=0).update(trial_until=None)

    def _ask_itself(self) -> None:
        """Ask the forge who we are, once: that depends on no repository, but on the forge's database (the version does not).
        The result is recorded like any request's: an answer resets the failures, and none opens the circuit. If the budget
        holds it back, nothing is known, and the next failure asks again.
        """
        itself, patience = _itself.set(True), _patience.set(0.0)
        try:
            with suppress(ForgeError, SecretUnreadable):
                self._whoami()
        finally:
            _itself.reset(itself)
            _patience.reset(patience)

    def _note_right(self, ask: Ask, error: ForgeError | None) -> None:
        """Record a permission that only a write, or its refusal, can show."""
        allowed = error is None
        if not (allowed or isinstance(error, Forbidden)) or ask.kind not in permissions.SHOWN_BY:
            return
        if self._seen.get((ask.kind, ask.repository)) is not allowed:
            self._seen[(ask.kind, ask.repository)] = allowed
            permissions.note_use(self.forge_id, ask.repository, permissions.SHOWN_BY[ask.kind], allowed, str(error or ""))


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


def _held_back(found: CircuitState, row: Traffic, now: datetime) -> ForgeError:
    wait = max(1.0, (found.until - now).total_seconds()) if found.until else 1.0
    if found.word == "paused":
        return RateLimited(f"the forge asked us to wait for another {wait:.0f} s ({row.last_failure})"[:500], retry_after=wait)
    text = f"{row.failures} requests in a row failed; no requests for another {wait:.0f} s ({row.last_failure})"
    return CircuitOpen(text[:500], retry_after=wait)


def forgive(forge: Forge) -> None:
    """Close the circuit and end any pause, because a person wants the forge asked now."""
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
class RequestStats:
    """This process's requests that are not yet in the database. Written every few seconds; a killed process loses them."""

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
                self.pid, self.sums = os.getpid(), {}  # the parent writes those
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
        """Add the sums to the rows."""
        with self.lock:
            sums, self.sums, self.written = self.sums, {}, time.monotonic()
        there = set(Forge.objects.filter(pk__in={key[0] for key in sums}).values_list("pk", flat=True)) if sums else set()
        for (forge_id, hour, kind), found in sums.items():
            if forge_id in there:
                _add(forge_id, hour, kind, found)

    def drop(self) -> None:
        """Discard the sums."""
        with self.lock:
            self.sums = {}


request_stats = RequestStats()


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
            continue  # another process created it at the same time


def drop_old() -> int:
    """Drop rows older than KEEP_DAYS. Returns how many."""
    request_stats.write()
    return RequestCount.objects.filter(hour__lt=timezone.now() - timedelta(days=KEEP_DAYS)).delete()[0]
