"""The work after the receiver: deliveries that wait become comments or looks; they can be replayed, and go after some days."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django_q.tasks import async_task

from controlplane import backoff
from controlplane.secrets import SecretUnreadable
from enrollment import polling
from enrollment.forges.base import ForgeError, Heard
from enrollment.hook_states import State, move
from enrollment.models import Comment, Delivery, PullRequest, Repository, WebhookConfig
from enrollment.receiver import Decision, Unreadable, decide, read

log = logging.getLogger(__name__)

Outcome = Delivery.Outcome

#: Seconds for which one task takes deliveries; what is left has the next one.
SECONDS = 20
MAX_TRIES = 5
#: Rows of one statement.
BATCH = 1000


def take_waiting(seconds: float = SECONDS) -> int:
    """Take all deliveries that wait, oldest first. Returns how many. Several at once are no harm."""
    end, taken = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        due = Delivery.objects.filter(outcome=Outcome.ACCEPTED).exclude(next_try_at__gt=timezone.now())
        batch = list(due.select_related("repository__forge", "forge", "hook").order_by("received_at", "pk")[:50])
        if not batch:
            break
        for delivery in batch:
            take(delivery)
            taken += 1
            if time.monotonic() > end:
                break
    return taken


def take(delivery: Delivery) -> None:
    """Do what one delivery asks for. A failure of ours is written down and tried again; after that it is polling's."""
    # Forward in time first: whatever happens now, it cannot be taken in a tight loop.
    wait = backoff.wait(delivery.tries, timedelta(seconds=10))
    if not Delivery.objects.filter(pk=delivery.pk, outcome=Outcome.ACCEPTED, tries=delivery.tries).update(
        tries=delivery.tries + 1, next_try_at=timezone.now() + wait
    ):
        return
    try:
        outcome, reason, comment = _do(delivery)
    except Exception as error:
        log.exception("%s", delivery)
        if delivery.tries + 1 < MAX_TRIES:
            Delivery.objects.filter(pk=delivery.pk).update(reason=f"{type(error).__name__}: {error}"[:2000])
            return
        outcome, reason, comment = Outcome.FAILED, f"{type(error).__name__}: {error}", None
    Delivery.objects.filter(pk=delivery.pk, outcome=Outcome.ACCEPTED).update(
        outcome=outcome, reason=reason[:2000], comment=comment, handled_at=timezone.now(), next_try_at=None
    )


def _do(delivery: Delivery) -> tuple[Outcome, str, Comment | None]:
    row = delivery.repository
    if row is None or not row.active:
        return Outcome.IGNORED, "the repository is enrolled no longer", None
    try:
        heard = read(delivery.forge.kind, delivery.event, delivery.body)
    except Unreadable as error:
        return Outcome.FAILED, str(error), None
    if heard.comment is None or heard.number is None:
        return Outcome.IGNORED, heard.unwanted, None
    if delivery.hook_id is not None and not heard.doubts:
        prove(delivery.hook_id, delivery.received_at)
    known = Comment.objects.filter(forge=delivery.forge_id, forge_comment_id=heard.comment.id)
    if comment := known.first():
        return Outcome.KNOWN, f"seen before, by {Comment.Via(comment.via).label}", comment
    decision = decide(heard, polling.is_interesting(row, heard.comment), timezone.now())
    if decision.do == "ignore":
        return Outcome.IGNORED, decision.reason, None
    pull = _pull_request(row, heard.number, heard)
    if decision.do == "store" and not _is_ours_alone(delivery.hook):
        decision = Decision("wake", "people know this hook's secret, so the forge itself is asked")
    if decision.do == "store":
        new = polling.store(row, [heard.comment], Comment.Via.DELIVERY, pull)
        return (Outcome.STORED if new else Outcome.KNOWN), decision.reason, known.first()
    polling.wake(pull, heard.comment.updated_at)
    there, found = _look(pull)
    return (Outcome.WOKE if there else Outcome.IGNORED), f"{decision.reason}; {found}", known.first()


def prove(hook_id: int, received_at: datetime) -> None:
    """A hook told of a comment on a pull request of its own place, signed with its own secret; cc-ci's own reports will do.
    Nothing less is a proof: a hook for pushes alone is signed as well. What came before the hook's present state began proves
    nothing new."""
    hook = WebhookConfig.objects.select_related("repository").filter(pk=hook_id, state_at__lte=received_at).first()
    if hook is not None and hook.state != State.VERIFIED:
        move(hook, "deliver", "a delivery came that was signed with its secret, of a comment on a pull request")


def _is_ours_alone(hook: WebhookConfig | None) -> bool:
    """Whether only cc-ci and the forge know the secret: then what is signed with it was said by the forge. One that was made
    for a maintainer is known to people, and of one that is gone nobody knows any more."""
    return hook is not None and not hook.by_hand


def _pull_request(row: Repository, number: int, heard: Heard) -> PullRequest:
    defaults = {"title": heard.title, "html_url": heard.html_url}
    return PullRequest.objects.get_or_create(repository=row, number=number, defaults=defaults)[0]


def _look(pull: PullRequest) -> tuple[bool, str]:
    """Look at a pull request now. When that fails, its wish stands, and the next look at the forge reads it. Returns whether
    there may be such a pull request, and what was found."""
    try:
        result = polling.look_at(pull)
    except (ForgeError, SecretUnreadable) as error:
        return True, f"it could not be read now: {error}"
    return not result.unknown, result.skipped or "; ".join(result.problems) or f"{result.comments} new comments"


def replay_all(rows: Iterable[Delivery]) -> tuple[int, list[str]]:
    """Take deliveries once more, all of them with one task. Returns how many, and a line for each of which nothing was kept."""
    taken: list[int] = []
    left: list[str] = []
    for row in rows:
        if row.body and row.outcome not in (Outcome.REJECTED, Outcome.FOREIGN, Outcome.UNWANTED):
            taken.append(row.pk)
        else:
            left.append(f"{row} was {row.get_outcome_display()}: nothing was kept that could be replayed.")
    with transaction.atomic():
        for start in range(0, len(taken), BATCH):
            Delivery.objects.filter(pk__in=taken[start : start + BATCH]).update(
                outcome=Outcome.ACCEPTED, reason="replayed", tries=0, next_try_at=None, handled_at=None
            )
        if taken:
            async_task("enrollment.tasks.take_deliveries", save=False, task_name="take deliveries")
    return len(taken), left


def drop_old() -> int:
    """Drop deliveries that are older than CC_CI_DELIVERY_DAYS. Returns how many."""
    before, dropped = timezone.now() - timedelta(days=settings.CC_CI.delivery_days), 0
    while pks := list(Delivery.objects.filter(received_at__lt=before).values_list("pk", flat=True)[:BATCH]):
        dropped += Delivery.objects.filter(pk__in=pks).delete()[0]
    return dropped
