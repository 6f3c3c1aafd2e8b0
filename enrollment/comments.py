"""The comments of one pull request: requested, read from the forge, and stored as Comment rows.

A request to read stays in the database until it is done. Both polling and deliveries end here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from controlplane import backoff
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import (
    CircuitOpen,
    ForgeClient,
    ForgeError,
    NotFound,
    OverBudget,
    RateLimited,
    RemoteComment,
    Unauthorized,
    explain,
)
from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository
from enrollment.repositories import note_pull, refresh_repository, update_facts
from enrollment.signals import comment_received

log = logging.getLogger(__name__)

OVERLAP = timedelta(seconds=120)
#: What a comment must contain to get a row. `runs.commands` decides what it means.
TRIGGER = "!testme"


@dataclass
class PollResult:
    """The result of one poll."""

    forge: str
    requests_wanted: int = 0
    pulls: int = 0
    comments: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    #: Pull requests that the search returned in this poll, so their names are current.
    named: set[int] = field(default_factory=set)
    #: Requested pull requests that the forge does not know.
    unknown: set[int] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        names = ("forge", "requests_wanted", "pulls", "comments", "problems", "skipped")
        return {name: getattr(self, name) for name in names}

    def text(self) -> str:
        if self.skipped:
            return f"{self.forge}: {self.skipped}"
        text = f"{self.forge}: {self.pulls} changed, {self.comments} new comments"
        return f"{text}, {len(self.problems)} problems" if self.problems else text


def wake(pull: PullRequest, since: datetime) -> None:
    """Request the comments written or edited there at `since`, for the next poll or `read_now`."""
    # With a time in the future nothing would be read.
    request_comments(pull, max(min(since, timezone.now()), pull.repository.enrolled_at + OVERLAP) - OVERLAP)
    PullRequest.objects.filter(pk=pull.pk).update(comments_next_try_at=None)


def read_now(pull: PullRequest, client: ForgeClient | None = None) -> PollResult:
    """Read the requested comments of one pull request now, independent of polls (a comment read by both counts once).

    Raises what concerns the whole forge, after recording it there; the request then stays.
    """
    forge, result = pull.repository.forge, PollResult(str(pull))
    if forge.backoff_until and forge.backoff_until > timezone.now():
        result.skipped = f"waits until {forge.backoff_until:%H:%M:%S}"
        return result
    pull.refresh_from_db(fields=["comments_wanted_since", "comments_failures"])
    if pull.comments_wanted_since is None:
        result.skipped = "already read"
        return result
    try:
        read_pull_request(pull, client or client_for(forge, Purpose.POLLING), result)
    except (ForgeError, SecretUnreadable) as error:
        back_off(forge, error)
        raise
    return result


def read_state(pull: PullRequest) -> None:
    """Ask the forge about a pull request's state and head, and store them. Raises what concerns the whole forge."""
    row = pull.repository
    try:
        found = client_for(row.forge, Purpose.POLLING).pull(row.owner, row.name, pull.number)
    except (Unauthorized, RateLimited, CircuitOpen):
        raise
    except ForgeError as error:
        log.info("%s: %s", pull, error)  # the next poll shows it
        return
    if found.base.id == row.forge_repo_id:
        note_pull(pull, found)


def read_pull_request(pull: PullRequest, client: ForgeClient, result: PollResult) -> None:
    """Read the requested comments of one pull request. A failure of its own is recorded and retried later.

    Raises what concerns the whole forge: a bad token, a rate limit.
    """
    row, since = pull.repository, pull.comments_wanted_since
    result.requests_wanted += 1
    try:
        if pull.pk not in result.named:
            # An older request: the repository may have been renamed since, and another may have taken its name.
            result.requests_wanted += 1
            update_facts(row, client)
        result.requests_wanted += 1
        for listing, via in ((client.pull_comments, Comment.Via.POLL), (client.pull_reviews, Comment.Via.REVIEW)):
            result.comments += store(row, listing(row.owner, row.name, pull.number, since), via, pull)
        if pull.head_sha:  # somebody asked for a run of it, which may be about an older commit now
            result.requests_wanted += 1
            found = client.pull(row.owner, row.name, pull.number)
            if found.base.id == row.forge_repo_id:
                note_pull(pull, found)
    except OverBudget as error:
        # Perhaps only this repository's share: the others are still read.
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
                return  # read under its new name at the next poll
            if place == "there" and _is_unknown(pull, client):
                _give_up(pull, since, result)
                return
        try_later(pull, error, result)
        return
    # Only if nobody requested an earlier time meanwhile.
    PullRequest.objects.filter(pk=pull.pk, comments_wanted_since=since).update(
        comments_wanted_since=None, comments_failures=0, comments_next_try_at=None
    )


def try_later(pull: PullRequest, error: ForgeError, result: PollResult) -> None:
    """Record a pull request's failure and the time of the next try, which is later each time."""
    failures = pull.comments_failures + 1
    wait = backoff.wait(failures - 1, timedelta(seconds=settings.CC_CI.poll_seconds))
    PullRequest.objects.filter(pk=pull.pk).update(comments_failures=failures, comments_next_try_at=timezone.now() + wait)
    result.problems.append(f"{pull}: {explain(error)}")


def _place(row: Repository, client: ForgeClient) -> str:
    """Why something was not found under a repository's name: "moved", "there" if the name is right, or "unseen"."""
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


def _give_up(pull: PullRequest, since: datetime | None, result: PollResult) -> None:
    """Drop a request for a pull request that does not exist. Should the forge be wrong, the full resync finds the comments."""
    text = f"the forge has no pull request {pull.number} in {pull.repository.full_name}"
    log.info("%s; not polling it again", text)
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
    """Create Comment rows for what may contain a command. Returns how many are new; known ones are recognised by id."""
    new = 0
    for remote in comments:
        if remote.pull_number is None or not is_interesting(row, remote, via):
            continue
        if pull is None or pull.number != remote.pull_number:
            pull, _ = PullRequest.objects.get_or_create(repository=row, number=remote.pull_number)
        new += _store_one(row.forge, pull, remote, via)
    return new


def is_interesting(row: Repository, remote: RemoteComment, via: Comment.Via) -> bool:
    """Whether a comment could start something: newer than the enrolment, not our own, and with the command's word in it."""
    written = remote.updated_at if via == Comment.Via.REVIEW else remote.created_at
    # Comments carry whole seconds, so the second of the enrolment itself still counts.
    enrolled = row.enrolled_at.replace(microsecond=0)
    return written >= enrolled and remote.author.id != row.forge.bot_id and holds_the_word(remote.body)


def holds_the_word(text: str) -> bool:
    """Whether a text could contain a command."""
    return TRIGGER in text.lower()


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
        return 0  # another process stored it at the same time
    return 1


def _tell(comment_id: int) -> None:
    # A receiver that fails loses nothing: a sweep finds unhandled comments.
    for _, answer in comment_received.send_robust(sender=Comment, comment_id=comment_id):
        if isinstance(answer, Exception):
            log.error("comment %s: %s", comment_id, answer)


def request_comments(pull: PullRequest, since: datetime) -> None:
    # The earliest request wins; one conditional update, since an earlier one may still be unread.
    PullRequest.objects.filter(pk=pull.pk).filter(
        Q(comments_wanted_since__isnull=True) | Q(comments_wanted_since__gt=since)
    ).update(comments_wanted_since=since)


def back_off(forge: Forge, error: ForgeError | SecretUnreadable) -> None:
    """Record a forge's failure and the time of the next poll: later each time, at most backoff.LONGEST, with jitter."""
    failures = forge.failures + 1
    wait = backoff.wait(failures - 1, timedelta(seconds=settings.CC_CI.poll_seconds))
    text = explain(error)
    if isinstance(error, ForgeError) and error.retry_after:
        wait = max(wait, timedelta(seconds=min(error.retry_after, 3600)))
    log.warning("%s: %s", forge.name, text)
    now = timezone.now()
    Forge.objects.filter(pk=forge.pk).update(
        failures=failures, backoff_until=now + wait, last_error=text[:2000], last_error_at=now
    )
