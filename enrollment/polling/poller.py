"""Cursor + forge -> Comment rows. Always on, read-only.

A poll asks, for each owner in one request, which pull requests changed since the cursor, records for each that its comments
are requested, moves the cursor, and then reads the requested comments. So neither a crash at any point nor an unreadable pull
request loses anything: a request stays in the database until it is done.

Windows overlap by OVERLAP on the server's own clock, since rows become visible some time after the time they carry. A comment
that is read twice is recognised by its id.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import F, Q
from django.utils import timezone
from django_q.exceptions import TimeoutException

from controlplane.leases import Held, lease
from controlplane.secrets import SecretUnreadable
from enrollment import comments
from enrollment.comments import OVERLAP, PollResult
from enrollment.forge_access import clock_skew
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.clock_skew import server_now
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeClient,
    ForgeError,
    Garbage,
    NotFound,
    OddRows,
    OverBudget,
    PullSummary,
    RateLimited,
    Rejected,
    Unauthorized,
    Unavailable,
    explain,
)
from enrollment.models import Comment, Forge, PullRequest, Repository
from enrollment.polling import cadence
from enrollment.repositories import (
    FACTS,
    RESYNC_HOURS,
    copy_facts,
    enroll_by_topic,
    note_pull,
    refresh_identity,
    refresh_repository,
)

log = logging.getLogger(__name__)

#: Seconds of one poll; what is left waits for the next. A task has to end well before the queue's limit.
POLL_SECONDS = 20
LISTINGS_A_POLL = 10
#: A full resync overlaps the one before it, so that it finds what one bad response hid.
RESYNC_OVERLAP = timedelta(hours=RESYNC_HOURS)
#: How often to check again whether a server's search still ignores the owner, or refuses.
PROBE_AGAIN = timedelta(days=1)


def poll(forge: Forge, client: ForgeClient | None = None) -> PollResult:
    """Poll one forge once. Never raises because of the forge: failures are stored in the forge's row."""
    result = PollResult(forge.name)
    if forge.backoff_until and forge.backoff_until > timezone.now():
        result.skipped = f"waits until {forge.backoff_until:%H:%M:%S}"
        return result
    with lease(f"poll:{forge.pk}", POLL_SECONDS * 4) as held:
        if held is None:
            result.skipped = "another worker is polling it"
            return result
        forge.refresh_from_db()
        try:
            client = client or client_for(forge, Purpose.POLLING)
            _poll(forge, client, held, result)
        except OverBudget as error:
            # Our own limit: nothing is wrong with the forge, and others may still ask it.
            result.problems.append(explain(error))
        except CircuitOpen as error:
            # The circuit sets the wait; backing off on top of it would delay polling when the forge is back.
            result.problems.append(str(error))
            now = timezone.now()
            Forge.objects.filter(pk=forge.pk).update(
                failures=F("failures") + 1,
                backoff_until=now + timedelta(seconds=error.retry_after or 0),
                last_error=explain(error)[:2000],
                last_error_at=now,
            )
        except (ForgeError, SecretUnreadable) as error:
            result.problems.append(str(error))
            comments.back_off(forge, error)
        except TimeoutException:
            # The queue's own limit: a forge that responds byte by byte backs off like a dead one.
            comments.back_off(forge, Unavailable("the poll took longer than a task may"))
            raise
        else:
            now, problems = timezone.now(), "\n".join(result.problems)[:2000]
            trouble = {"last_error": problems} | ({"last_error_at": now} if problems else {})
            Forge.objects.filter(pk=forge.pk).update(failures=0, backoff_until=None, last_ok_at=now, **trouble)
    return result


def _poll(forge: Forge, client: ForgeClient, held: Held, result: PollResult) -> None:
    deadline = time.monotonic() + POLL_SECONDS
    if forge.bot_id is None:
        # Needed to recognise our own comments.
        refresh_identity(forge, client)
        forge.save(update_fields=["version", "bot_id", "bot_login"])
    # By the forge's own row: each of a thousand asks it whether hooks are wanted, and would fetch it anew.
    repositories = list(forge.repositories.watched())
    if not repositories:
        result.skipped = "nothing enrolled"
        return
    seen: dict[str, Any] = {}
    if _may_search(forge):
        seen = _search(forge, client, repositories, result)
    if forge.search == Forge.OwnerFilter.REFUSED:
        _list_all(cadence.to_list(forge, repositories), client, result, deadline)
    if seen and held.is_mine():
        # Only now: everything up to here is requested in the database. A process that lost the lease moves nothing.
        Forge.objects.filter(pk=forge.pk).update(**seen)
    _read_requested(forge, client, result, deadline)
    _resync(forge, client, result, deadline)
    if away := clock_skew.skew_message(client):
        result.problems.append(away)


# --- which pull requests changed


def _may_search(forge: Forge) -> bool:
    """Whether to use the search; if it was refused, only once in a while."""
    if forge.search != Forge.OwnerFilter.REFUSED:
        return True
    return forge.search_probed_at is None or forge.search_probed_at < timezone.now() - PROBE_AGAIN


def _search(forge: Forge, client: ForgeClient, repositories: list[Repository], result: PollResult) -> dict[str, Any]:
    """Ask which pull requests changed, and request their comments.

    Returns the fields to store in the forge's row: the server's time at the first response, up to which everything is now
    known. Empty if the search is refused, or must be repeated under an owner's new name.
    """
    by_id = {row.forge_repo_id: row for row in repositories}
    if (
        forge.search == Forge.OwnerFilter.IGNORED
        and forge.search_probed_at
        and forge.search_probed_at < timezone.now() - PROBE_AGAIN
    ):
        forge.search = Forge.OwnerFilter.UNKNOWN
    owners: list[str | None] = [None]
    if forge.search != Forge.OwnerFilter.IGNORED:
        owners = sorted({row.owner for row in repositories})  # type: ignore[assignment]
    turns = cadence.turns(forge, repositories, owners)
    started_at: datetime | None = None
    filtered, complete = True, True
    for owner in turns.due:
        since = turns.cursor(owner) - OVERLAP
        result.requests_wanted += 1
        try:
            for summary in client.changed_pulls(since, owner):
                started_at = started_at or server_now(client)
                if owner and summary.repo_full_name.partition("/")[0].lower() != owner.lower():
                    filtered = False
                if row := by_id.get(summary.repo_id):
                    result.pulls += 1
                    result.named.add(_request_comments(row, summary, since, client).pk)
        except OddRows as error:
            # The next poll would get the same response: continue, and let the full resync find what it hides.
            result.problems.append(f"search: {explain(error)}")
            Repository.objects.watched().filter(forge=forge).update(net_due_at=timezone.now())
        except Rejected as error:
            # Since 1.16: the owner does not exist. It was renamed or deleted, which must be reported.
            result.problems.append(f"{owner or 'search'}: {error}")
            rows = [row for row in repositories if row.owner == owner]
            present = _present(rows, client)
            moved = [row for row in present if row.owner != owner]
            if owner is None or len(moved) < len(present):
                # It was not about the owner, then.
                _note_search(forge, Forge.OwnerFilter.REFUSED)
                return {}
            result.problems += [f"now {row.full_name}" for row in moved]
            complete = complete and not moved
        except (Forbidden, NotFound) as error:
            log.warning("%s: the search is refused (%s); listing every repository instead", forge.name, error)
            _note_search(forge, Forge.OwnerFilter.REFUSED)
            return {}
        started_at = started_at or server_now(client)
        if not filtered:
            break  # this response contained everybody's
    if not turns.due:
        return turns.settled(server_now(client), everybody=False)
    if filtered and owners != [None]:
        # Proved only if somebody else's would have shown; "works" just means "no reason for doubt".
        _note_search(forge, Forge.OwnerFilter.WORKS)
    elif not filtered:
        log.info("%s ignores the owner in searches; searching once for all", forge.name)
        _note_search(forge, Forge.OwnerFilter.IGNORED)
        if not turns.alike:
            return {}  # asked since one owner's time; the next poll asks since everybody's
    return turns.settled(started_at, everybody=not filtered) if complete and started_at else {}


def _present(rows: list[Repository], client: ForgeClient) -> list[Repository]:
    """Those of an unknown owner's repositories that exist, under their current names. An owner's new name is asked for once,
    not for each of hundreds of repositories: at a forge that fails now and then that would never end.
    """
    names: dict[int, str] = {}
    present = []
    for row in rows:
        before, owner_id = row.owner, row.owner_id
        if owner_id in names:
            row.owner = names[owner_id]
            row.save(update_fields=["owner"])
        elif not refresh_repository(row, client):
            continue
        elif owner_id is not None and row.owner_id == owner_id and row.owner != before:
            names[owner_id] = row.owner
        present.append(row)
    return present


def _note_search(forge: Forge, state: Forge.OwnerFilter) -> None:
    """Store what was found out about the search; "works" only if that is new."""
    if forge.search != state or state != Forge.OwnerFilter.WORKS:
        forge.search = state
        Forge.objects.filter(pk=forge.pk).update(search=state, search_probed_at=timezone.now())


def _request_comments(row: Repository, summary: PullSummary, since: datetime, client: ForgeClient) -> PullRequest:
    """Record that the pull request changed, and since when its comments are to be read."""
    if row.full_name != summary.repo_full_name:
        log.info("%s was renamed to %s", row.full_name, summary.repo_full_name)
        _rename(row, summary, client)
    pull, _ = PullRequest.objects.update_or_create(
        repository=row,
        number=summary.number,
        defaults={
            "title": summary.title[:500],
            "author_id": summary.author.id,
            "author_login": summary.author.login[:255],
            "state": summary.state[:20],
            "html_url": summary.html_url[:500],
            "seen_updated_at": summary.updated_at,
        },
    )
    comments.request_comments(pull, max(since, row.enrolled_at))
    return pull


def _rename(row: Repository, summary: PullSummary, client: ForgeClient) -> None:
    """Store the name under which the search reported a repository. Its owner may be a new one with other people who may ask,
    so that is looked up, for one repository of an owner only.
    """
    owner, _, name = summary.repo_full_name.partition("/")
    same = Repository.objects.filter(forge=row.forge_id, owner_id=row.owner_id, owner=owner)
    if not 0 < len(name) <= 255 or (owner != row.owner and not (row.owner_id is not None and same.exists())):
        refresh_repository(row, client)
        return
    row.owner, row.name = owner, name
    row.save(update_fields=["owner", "name"])


# --- their comments


def _read_requested(forge: Forge, client: ForgeClient, result: PollResult, deadline: float) -> None:
    now = timezone.now()
    wanted = (
        PullRequest.objects.filter(repository__forge=forge, repository__active=True, comments_wanted_since__isnull=False)
        .filter(Q(comments_next_try_at__isnull=True) | Q(comments_next_try_at__lte=now))
        .select_related("repository__forge")
        .order_by(F("seen_updated_at").desc(nulls_last=True))
    )
    for pull in wanted:
        if time.monotonic() > deadline:
            return
        comments.read_pull_request(pull, client, result)


# --- without a search, and the full resync


def _resync(forge: Forge, client: ForgeClient, result: PollResult, deadline: float) -> None:
    """List whole repositories that have not been listed for RESYNC_HOURS, which finds what the search missed."""
    due = Repository.objects.watched().filter(forge=forge).filter(Q(net_due_at__isnull=True) | Q(net_due_at__lte=timezone.now()))
    for row in due.order_by(F("net_due_at").asc(nulls_first=True))[:LISTINGS_A_POLL]:
        if time.monotonic() > deadline:
            return
        list_repository(row, client, result)


def _list_all(repositories: list[Repository], client: ForgeClient, result: PollResult, deadline: float) -> None:
    # Oldest first, so that a deadline starves nobody.
    for row in sorted(repositories, key=lambda row: row.net_cursor or datetime.min.replace(tzinfo=UTC)):
        if time.monotonic() > deadline:
            return
        list_repository(row, client, result)


def list_repository(row: Repository, client: ForgeClient, result: PollResult) -> None:
    """List a repository's comments since its last listing, or since the one before if a full resync is due. Also refreshes the
    forge's facts about it.
    """
    is_resync = row.net_due_at is None or row.net_due_at <= timezone.now()
    overlap = RESYNC_OVERLAP if is_resync else OVERLAP
    since = max((clock_skew.believed(row.net_cursor) or row.enrolled_at) - overlap, row.enrolled_at)
    result.requests_wanted += 3
    try:
        remote = client.repository_by_id(row.forge_repo_id)
        started_at = server_now(client)
        copy_facts(row, remote)
        odd: OddRows | None = None
        try:
            result.comments += comments.store(row, client.repository_comments(row.owner, row.name, since), Comment.Via.RESYNC)
        except OddRows as error:
            odd = error  # reviews are still read
        # Repositories have no list of reviews: those of changed pull requests are read one by one.
        for changed in client.repository_pulls(row.owner, row.name, since):
            pull, _ = PullRequest.objects.get_or_create(repository=row, number=changed.number)
            note_pull(pull, changed)
            try:
                reviews = client.pull_reviews(row.owner, row.name, changed.number, since)
                result.comments += comments.store(row, reviews, Comment.Via.REVIEW, pull)
            except (Garbage, NotFound) as error:
                # The request to read it is in the database now, so the cursor may pass it.
                comments.request_comments(pull, since)
                comments.try_later(pull, error, result)
        if odd:
            raise odd
    except (Unauthorized, RateLimited, CircuitOpen):
        raise
    except ForgeError as error:
        row.last_error, row.last_error_at = explain(error)[:2000], timezone.now()
        row.net_due_at = timezone.now() + timedelta(minutes=10)
        row.save(update_fields=["last_error", "last_error_at", "net_due_at"])
        result.problems.append(f"{row.full_name}: {explain(error)}")
        return
    row.last_error = ""
    row.net_cursor = started_at
    if is_resync:
        row.net_due_at = timezone.now() + timedelta(hours=RESYNC_HOURS * random.uniform(0.9, 1.1))  # noqa: S311
    # Only these fields: a person may unenrol it, or change who is allowed, at the same time.
    row.save(update_fields=[*FACTS, "last_error", "net_cursor", "net_due_at"])


# --- by topic


def enroll_topics(forge: Forge, client: ForgeClient | None = None) -> list[str]:
    """Enrol by topic at one forge. Returns lines about what changed, or what failed."""
    if not forge.watched_owners or (forge.backoff_until and forge.backoff_until > timezone.now()):
        return []
    try:
        return enroll_by_topic(forge, client or client_for(forge, Purpose.UPKEEP))
    except (ForgeError, SecretUnreadable) as error:
        comments.back_off(forge, error)
        return [f"{forge.name}: {error}"]
