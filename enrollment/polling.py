"""Cursor + forge -> Comment rows. Always on, read-only.

One look at a forge asks, for each owner in one request, which pull requests changed since the cursor, writes down for each
that its comments are wanted, moves the cursor, and then reads the comments that are wanted. So a death at any point, or
one pull request that cannot be read, loses nothing: what is wanted stands in the database until it has been read.

Windows overlap by OVERLAP on the server's own clock, since rows become visible some time after the time they carry. A
comment that is read twice is found by its id.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.utils import timezone
from django_q.exceptions import TimeoutException

from controlplane import backoff
from controlplane.leases import Held, lease
from controlplane.secrets import SecretUnreadable
from enrollment import clocks, pace
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.clocks import server_now
from enrollment.enrolling import (
    FACTS,
    NET_HOURS,
    copy_facts,
    enroll_by_topic,
    refresh_identity,
    refresh_repository,
    update_facts,
)
from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeClient,
    ForgeError,
    NotFound,
    OddRows,
    OverBudget,
    PullSummary,
    RateLimited,
    Rejected,
    RemoteComment,
    Unauthorized,
    Unavailable,
)
from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository
from enrollment.signals import comment_received

log = logging.getLogger(__name__)

OVERLAP = timedelta(seconds=120)
#: Seconds of one look; what is left waits for the next. A task has to end well before the queue's limit.
LOOK_SECONDS = 20
NETS_A_LOOK = 10
#: The net reaches back over the one before it: what one odd answer hid, a later one shows.
NET_OVERLAP = timedelta(hours=NET_HOURS)
#: How often a server whose search ignores the owner, or refuses, is asked again whether it still does.
PROBE_AGAIN = timedelta(days=1)
#: What a comment must hold to be worth a row. `runs.chatops` decides what it means.
TRIGGER = "!testme"


@dataclass
class Look:
    """What one look at a forge did."""

    forge: str
    requests_wanted: int = 0
    pulls: int = 0
    comments: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    #: Pull requests of which the search has told in this look, and so under which name they are.
    named: set[int] = field(default_factory=set)
    #: Pull requests that were to be read, and that the forge does not know.
    unknown: set[int] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        names = ("forge", "requests_wanted", "pulls", "comments", "problems", "skipped")
        return {name: getattr(self, name) for name in names}

    def words(self) -> str:
        if self.skipped:
            return f"{self.forge}: {self.skipped}"
        text = f"{self.forge}: {self.pulls} changed, {self.comments} new comments"
        return f"{text}, {len(self.problems)} problems" if self.problems else text


def look(forge: Forge, client: ForgeClient | None = None) -> Look:
    """Look at one forge once. Never raises for what the forge does: that is written on the forge's row."""
    result = Look(forge.name)
    if forge.backoff_until and forge.backoff_until > timezone.now():
        result.skipped = f"waits until {forge.backoff_until:%H:%M:%S}"
        return result
    with lease(f"poll:{forge.pk}", LOOK_SECONDS * 4) as held:
        if held is None:
            result.skipped = "another worker looks"
            return result
        forge.refresh_from_db()
        try:
            client = client or client_for(forge, Purpose.POLLING)
            _look(forge, client, held, result)
        except OverBudget as error:
            # Our own limit: nothing is wrong with the forge, and others may still ask it.
            result.problems.append(f"{error}. {error.advice}")
        except CircuitOpen as error:
            # Whoever found it down has said for how long; waiting on top of that would make it late when it is back.
            result.problems.append(str(error))
            now = timezone.now()
            Forge.objects.filter(pk=forge.pk).update(
                failures=F("failures") + 1,
                backoff_until=now + timedelta(seconds=error.retry_after or 0),
                last_error=f"{error}. {error.advice}"[:2000],
                last_error_at=now,
            )
        except (ForgeError, SecretUnreadable) as error:
            result.problems.append(str(error))
            _failed(forge, error)
        except TimeoutException:
            # The queue's own limit: a forge that dribbles byte by byte shall be left alone for a while like a dead one.
            _failed(forge, Unavailable("the look took longer than a task may"))
            raise
        else:
            Forge.objects.filter(pk=forge.pk).update(
                failures=0, backoff_until=None, last_ok_at=timezone.now(), **({"last_error": ""} if not result.problems else {})
            )
            if result.problems:
                Forge.objects.filter(pk=forge.pk).update(
                    last_error="\n".join(result.problems)[:2000], last_error_at=timezone.now()
                )
    return result


def _failed(forge: Forge, error: ForgeError | SecretUnreadable) -> None:
    """Write down the failure, and when to look again: later each time, at most backoff.LONGEST, with jitter."""
    failures = forge.failures + 1
    wait = backoff.wait(failures - 1, timedelta(seconds=settings.CC_CI.poll_seconds))
    text = str(error)
    if isinstance(error, ForgeError):
        text = f"{error}. {error.advice}"
        if error.retry_after:
            wait = max(wait, timedelta(seconds=min(error.retry_after, 3600)))
    log.warning("%s: %s", forge.name, text)
    now = timezone.now()
    Forge.objects.filter(pk=forge.pk).update(
        failures=failures, backoff_until=now + wait, last_error=text[:2000], last_error_at=now
    )


def _look(forge: Forge, client: ForgeClient, held: Held, result: Look) -> None:
    deadline = time.monotonic() + LOOK_SECONDS
    if forge.bot_id is None:
        # Without it we could not tell our own comments from others'.
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
        _list_all(pace.to_list(forge, repositories), client, result, deadline)
    if seen and held.is_mine():
        # Only now: everything up to here is wanted in the database. A late owner of the lease moves nothing.
        Forge.objects.filter(pk=forge.pk).update(**seen)
    _read_wanted(forge, client, result, deadline)
    _nets(forge, client, result, deadline)
    if away := clocks.words_on(client):
        result.problems.append(away)


# --- which pull requests changed


def _may_search(forge: Forge) -> bool:
    """Whether to ask the search; where it was refused, once in a while."""
    if forge.search != Forge.OwnerFilter.REFUSED:
        return True
    return forge.search_probed_at is None or forge.search_probed_at < timezone.now() - PROBE_AGAIN


def _search(forge: Forge, client: ForgeClient, repositories: list[Repository], result: Look) -> dict[str, Any]:
    """Ask which pull requests changed, and write down that their comments are wanted.

    Returns what to write on the forge's row: the server's time at the first answer, up to which all is now known. Nothing
    when the search is refused, or has to be asked again under the new name of an owner.
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
    turns = pace.turns(forge, repositories, owners)
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
                    result.named.add(_want_comments(row, summary, since, client).pk)
        except OddRows as error:
            # Whatever stands there will be the same at the next look: go on, and let the net find what it hides.
            result.problems.append(f"search: {error}. {error.advice}")
            Repository.objects.watched().filter(forge=forge).update(net_due_at=timezone.now())
        except Rejected as error:
            # From 1.16 on: an owner that does not exist. It was renamed or deleted, which is to be seen, not to be silent.
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
            log.warning("%s: the search is refused (%s); every repository is listed instead", forge.name, error)
            _note_search(forge, Forge.OwnerFilter.REFUSED)
            return {}
        started_at = started_at or server_now(client)
        if not filtered:
            break  # the one answer held everybody's
    if not turns.due:
        return turns.settled(server_now(client), everybody=False)
    if filtered and owners != [None]:
        # Seen to work only when somebody else's would have shown; "works" just means "no reason for doubt".
        _note_search(forge, Forge.OwnerFilter.WORKS)
    elif not filtered:
        log.info("%s ignores the owner in searches; asking once for all", forge.name)
        _note_search(forge, Forge.OwnerFilter.IGNORED)
        if not turns.alike:
            return {}  # asked from one owner's time on; the next look asks from everybody's
    return turns.settled(started_at, everybody=not filtered) if complete and started_at else {}


def _present(rows: list[Repository], client: ForgeClient) -> list[Repository]:
    """Those of an unknown owner's repositories that are there, under their present names. An owner's new name is asked for
    once, not for each of hundreds of repositories: at a forge that fails now and then that would never end."""
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
    """Write down what was just found out about the search; for "works" only when that is news."""
    if forge.search != state or state != Forge.OwnerFilter.WORKS:
        forge.search = state
        Forge.objects.filter(pk=forge.pk).update(search=state, search_probed_at=timezone.now())


def _want_comments(row: Repository, summary: PullSummary, since: datetime, client: ForgeClient) -> PullRequest:
    """Write down that the pull request changed, and from when on its comments are to be read."""
    if row.full_name != summary.repo_full_name:
        log.info("%s is now called %s", row.full_name, summary.repo_full_name)
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
    _wish(pull, max(since, row.enrolled_at))
    return pull


def _rename(row: Repository, summary: PullSummary, client: ForgeClient) -> None:
    """Take over the name under which the search told of a repository. Its owner may be another one, too, and owners may ask:
    that is asked for, but for one repository of an owner, not for each."""
    owner, _, name = summary.repo_full_name.partition("/")
    same = Repository.objects.filter(forge=row.forge_id, owner_id=row.owner_id, owner=owner)
    if not 0 < len(name) <= 255 or (owner != row.owner and not (row.owner_id is not None and same.exists())):
        refresh_repository(row, client)
        return
    row.owner, row.name = owner, name
    row.save(update_fields=["owner", "name"])


def _wish(pull: PullRequest, since: datetime) -> None:
    # The earliest wish counts; one conditional update, since an earlier one may still stand unread.
    PullRequest.objects.filter(pk=pull.pk).filter(
        Q(comments_wanted_since__isnull=True) | Q(comments_wanted_since__gt=since)
    ).update(comments_wanted_since=since)


def wake(pull: PullRequest, since: datetime) -> None:
    """Somebody says that a comment was written or edited there at `since`: have it read, at the next look or by `look_at`."""
    # A time that is still to come would have nothing read.
    _wish(pull, max(min(since, timezone.now()), pull.repository.enrolled_at + OVERLAP) - OVERLAP)
    PullRequest.objects.filter(pk=pull.pk).update(comments_next_try_at=None)


def look_at(pull: PullRequest, client: ForgeClient | None = None) -> Look:
    """Read what is wanted of one pull request now, beside the looks at the whole forge (a comment read by both counts once).

    Raises what concerns the whole forge, after it was written down there; the wish stands then.
    """
    forge, result = pull.repository.forge, Look(str(pull))
    if forge.backoff_until and forge.backoff_until > timezone.now():
        result.skipped = f"waits until {forge.backoff_until:%H:%M:%S}"
        return result
    pull.refresh_from_db(fields=["comments_wanted_since", "comments_failures"])
    if pull.comments_wanted_since is None:
        result.skipped = "read meanwhile"
        return result
    try:
        read_pull_request(pull, client or client_for(forge, Purpose.POLLING), result)
    except (ForgeError, SecretUnreadable) as error:
        _failed(forge, error)
        raise
    return result


# --- their comments


def _read_wanted(forge: Forge, client: ForgeClient, result: Look, deadline: float) -> None:
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
        read_pull_request(pull, client, result)


def read_pull_request(pull: PullRequest, client: ForgeClient, result: Look) -> None:
    """Read the comments that are wanted of one pull request. A failure of its own is written down and tried again later.

    Raises what concerns the whole forge: a bad token, a limit on requests.
    """
    row, since = pull.repository, pull.comments_wanted_since
    result.requests_wanted += 1
    try:
        if pull.pk not in result.named:
            # Wanted since some time ago. It may have been renamed meanwhile, and another may have taken its name.
            result.requests_wanted += 1
            update_facts(row, client)
        remote = client.pull_comments(row.owner, row.name, pull.number, since)
        result.comments += store(row, remote, Comment.Via.POLL, pull)
    except OverBudget as error:
        # Perhaps this repository's part alone: the others are read all the same.
        later = timezone.now() + timedelta(seconds=error.retry_after or 0)
        PullRequest.objects.filter(pk=pull.pk).update(comments_next_try_at=later)
        result.problems.append(f"{pull}: {error}")
        return
    except (Unauthorized, RateLimited, CircuitOpen):
        raise
    except ForgeError as error:
        if isinstance(error, NotFound):
            place = _place(row, client)
            if place == "moved":
                return  # under its new name at the next look
            if place == "there" and _is_unknown(pull, client):
                _give_up(pull, since, result)
                return
        failures = pull.comments_failures + 1
        wait = backoff.wait(failures - 1, timedelta(seconds=settings.CC_CI.poll_seconds))
        PullRequest.objects.filter(pk=pull.pk).update(
            comments_failures=failures,
            comments_next_try_at=timezone.now() + wait,
        )
        result.problems.append(f"{pull}: {error}. {error.advice}")
        return
    # Only if nobody wished for an earlier time meanwhile.
    PullRequest.objects.filter(pk=pull.pk, comments_wanted_since=since).update(
        comments_wanted_since=None, comments_failures=0, comments_next_try_at=None
    )


def _place(row: Repository, client: ForgeClient) -> str:
    """What is with a repository under whose name something was not found: "moved", "there" as it is called, or "unseen"."""
    before = row.full_name
    try:
        if not refresh_repository(row, client):
            return "unseen"
    except ForgeError:
        return "unseen"
    return "there" if row.full_name == before else "moved"


def _is_unknown(pull: PullRequest, client: ForgeClient) -> bool:
    """Whether the forge, asked for the pull request itself, does not know it either."""
    try:
        client.pull(pull.repository.owner, pull.repository.name, pull.number)
    except NotFound:
        return True
    except ForgeError:
        pass
    return False


def _give_up(pull: PullRequest, since: datetime | None, result: Look) -> None:
    """Somebody wished to look at what is not there. Should the forge be wrong, the net finds what was said."""
    text = f"the forge knows no pull request {pull.number} of {pull.repository.full_name}"
    log.info("%s; it is not looked at again", text)
    result.unknown.add(pull.pk)
    result.problems.append(text)
    with transaction.atomic():
        PullRequest.objects.filter(pk=pull.pk, comments_wanted_since=since).update(
            comments_wanted_since=None, comments_failures=0, comments_next_try_at=None
        )
        Repository.objects.filter(pk=pull.repository_id).update(net_due_at=timezone.now())
        woke = Delivery.objects.filter(repository=pull.repository, number=pull.number, outcome=Delivery.Outcome.WOKE)
        woke.filter(comment=None).update(outcome=Delivery.Outcome.IGNORED, reason=text)


def store(row: Repository, comments: Iterable[RemoteComment], via: Comment.Via, pull: PullRequest | None = None) -> int:
    """Make Comment rows of what may hold a command. Returns how many are new; what is known is found by its id."""
    new = 0
    for remote in comments:
        if remote.pull_number is None or not is_interesting(row, remote):
            continue
        if pull is None or pull.number != remote.pull_number:
            pull, _ = PullRequest.objects.get_or_create(repository=row, number=remote.pull_number)
        new += _store_one(row.forge, pull, remote, via)
    return new


def is_interesting(row: Repository, remote: RemoteComment) -> bool:
    """Whether a comment could start something: younger than the enrolment, not our own, and with the word in it."""
    # Comments carry whole seconds, so the second of the enrolment itself still counts.
    enrolled = row.enrolled_at.replace(microsecond=0)
    return remote.created_at >= enrolled and remote.author.id != row.forge.bot_id and TRIGGER in remote.body.lower()


def _store_one(forge: Forge, pull: PullRequest, remote: RemoteComment, via: Comment.Via) -> int:
    if Comment.objects.filter(forge=forge, forge_comment_id=remote.id).exists():
        return 0
    try:
        with transaction.atomic():
            comment = Comment.objects.create(
                forge=forge,
                forge_comment_id=remote.id,
                pull_request=pull,
                author_id=remote.author.id,
                author_login=remote.author.login[:255],
                body=remote.body,
                html_url=remote.html_url[:500],
                created_at=remote.created_at,
                updated_at=remote.updated_at,
                via=via,
            )
            transaction.on_commit(lambda: _tell(comment.pk))
    except IntegrityError:
        return 0  # somebody else stored it in this very moment
    return 1


def _tell(comment_id: int) -> None:
    # A receiver that fails loses nothing: a sweep finds comments that nobody handled.
    for _, answer in comment_received.send_robust(sender=Comment, comment_id=comment_id):
        if isinstance(answer, Exception):
            log.error("comment %s: %s", comment_id, answer)


# --- without a search, and the net under it


def _nets(forge: Forge, client: ForgeClient, result: Look, deadline: float) -> None:
    """List whole repositories that have not been listed for NET_HOURS: what the search did not tell shows up here."""
    due = Repository.objects.watched().filter(forge=forge).filter(Q(net_due_at__isnull=True) | Q(net_due_at__lte=timezone.now()))
    for row in due.order_by(F("net_due_at").asc(nulls_first=True))[:NETS_A_LOOK]:
        if time.monotonic() > deadline:
            return
        list_repository(row, client, result)


def _list_all(repositories: list[Repository], client: ForgeClient, result: Look, deadline: float) -> None:
    # Longest ago first, so that a deadline starves nobody.
    for row in sorted(repositories, key=lambda row: row.net_cursor or datetime.min.replace(tzinfo=UTC)):
        if time.monotonic() > deadline:
            return
        list_repository(row, client, result)


def list_repository(row: Repository, client: ForgeClient, result: Look) -> None:
    """List a repository's comments since its last listing, or since the one before where it is due as a net. Refreshes what
    the forge says of it, too."""
    is_net = row.net_due_at is None or row.net_due_at <= timezone.now()
    overlap = NET_OVERLAP if is_net else OVERLAP
    since = max((clocks.believed(row.net_cursor) or row.enrolled_at) - overlap, row.enrolled_at)
    result.requests_wanted += 2
    try:
        remote = client.repository_by_id(row.forge_repo_id)
        started_at = server_now(client)
        copy_facts(row, remote)
        result.comments += store(row, client.repository_comments(row.owner, row.name, since), Comment.Via.NET)
    except (Unauthorized, RateLimited, CircuitOpen):
        raise
    except ForgeError as error:
        row.last_error, row.last_error_at = f"{error}. {error.advice}"[:2000], timezone.now()
        row.net_due_at = timezone.now() + timedelta(minutes=10)
        row.save(update_fields=["last_error", "last_error_at", "net_due_at"])
        result.problems.append(f"{row.full_name}: {error}. {error.advice}")
        return
    row.last_error = ""
    row.net_cursor = started_at
    if is_net:
        row.net_due_at = timezone.now() + timedelta(hours=NET_HOURS * random.uniform(0.9, 1.1))  # noqa: S311
    # These alone: a person may unenrol it, or change who is allowed, at this very moment.
    row.save(update_fields=[*FACTS, "last_error", "net_cursor", "net_due_at"])


# --- by topic


def look_for_topics(forge: Forge, client: ForgeClient | None = None) -> list[str]:
    """Enrol by topic at one forge. Returns lines on what changed, or on what went wrong."""
    if not forge.watched_owners or (forge.backoff_until and forge.backoff_until > timezone.now()):
        return []
    try:
        return enroll_by_topic(forge, client or client_for(forge, Purpose.UPKEEP))
    except (ForgeError, SecretUnreadable) as error:
        _failed(forge, error)
        return [f"{forge.name}: {error}"]
