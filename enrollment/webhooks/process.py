"""After the receiver: turns waiting deliveries into comments or polls, replays them, and drops old ones."""

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
from enrollment import comments
from enrollment.forges.base import ForgeError, Heard
from enrollment.models import Comment, Delivery, PullRequest, Repository, WebhookConfig
from enrollment.webhooks.lifecycle import State, move
from enrollment.webhooks.receiver import Decision, Unreadable, decide, read

log = logging.getLogger(__name__)

Outcome = Delivery.Outcome

#: Seconds for which one task processes deliveries; the rest is left to the next task.
SECONDS = 20
MAX_TRIES = 5
#: Rows per statement.
BATCH = 1000


def take_waiting(seconds: float = SECONDS) -> int:
    """Process waiting deliveries, oldest first. Returns how many. Several processes may do this at once."""
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
    """Process one delivery. A failure of ours is recorded and retried up to MAX_TRIES; after that it is left to polling."""
    # Postpone first: whatever happens now, it cannot be retried in a tight loop.
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
        return Outcome.IGNORED, "the repository is no longer enrolled", None
    try:
        heard = read(delivery.forge.kind, delivery.event, delivery.body)
    except Unreadable as error:
        return Outcome.FAILED, str(error), None
    if heard.unwanted or heard.number is None:
        return Outcome.IGNORED, heard.unwanted, None
    if heard.comment is None:
        return *_wake(row, heard, delivery.received_at), None
    if delivery.hook_id is not None and not heard.doubts:
        prove(delivery.hook_id, delivery.received_at)
    known = Comment.objects.filter(forge=delivery.forge_id, forge_comment_id=heard.comment.id)
    if comment := known.first():
        return Outcome.KNOWN, f"already known, by {Comment.Via(comment.via).label}", comment
    decision = decide(heard, comments.is_interesting(row, heard.comment, Comment.Via.DELIVERY), timezone.now())
    if decision.do == "ignore":
        return Outcome.IGNORED, decision.reason, None
    pull = _pull_request(row, heard.number, heard)
    if decision.do == "store" and not _is_ours_alone(delivery.hook):
        decision = Decision("wake", "people know this hook's secret, so the forge is asked to confirm")
    if decision.do == "store":
        new = comments.store(row, [heard.comment], Comment.Via.DELIVERY, pull)
        return (Outcome.STORED if new else Outcome.KNOWN), decision.reason, known.first()
    comments.wake(pull, heard.comment.updated_at)
    there, found = _poll_pull(pull)
    return (Outcome.WOKE if there else Outcome.IGNORED), f"{decision.reason}; {found}", known.first()


def _wake(row: Repository, heard: Heard, at: datetime) -> tuple[Outcome, str]:
    """Have a review, or the state of a closed pull request, read from the forge itself."""
    decision = decide(heard, comments.holds_the_word(heard.review), timezone.now())
    if decision.do == "ignore" or heard.number is None:
        return Outcome.IGNORED, decision.reason
    pull = _pull_request(row, heard.number, heard)
    comments.wake(pull, at)
    there, found = _poll_pull(pull, state=heard.closed)
    return (Outcome.WOKE if there else Outcome.IGNORED), f"{decision.reason}; {found}"


def prove(hook_id: int, received_at: datetime) -> None:
    """Mark a hook as verified by a delivery about a comment on a pull request in its scope, signed with its own secret;
    cc-ci's own reports count. Nothing less proves it: a hook for pushes alone is signed as well. Deliveries received before
    the hook's current state began prove nothing.
    """
    hook = WebhookConfig.objects.select_related("repository").filter(pk=hook_id, state_at__lte=received_at).first()
    if hook is not None and hook.state != State.VERIFIED:
        move(hook, "deliver", "received a delivery about a comment on a pull request, signed with its secret")


def _is_ours_alone(hook: WebhookConfig | None) -> bool:
    """Whether only cc-ci and the forge know the secret, so that what is signed with it comes from the forge. People know one
    created for manual use, and who knows a deleted hook's is unknown.
    """
    return hook is not None and not hook.by_hand


def _pull_request(row: Repository, number: int, heard: Heard) -> PullRequest:
    defaults = {"title": heard.title, "html_url": heard.html_url}
    return PullRequest.objects.get_or_create(repository=row, number=number, defaults=defaults)[0]


def _poll_pull(pull: PullRequest, state: bool = False) -> tuple[bool, str]:
    """Poll a pull request now. If that fails, the request stays recorded and the next poll reads it. Returns whether such a
    pull request may exist, and what was found.
    """
    try:
        if state:
            comments.read_state(pull)
        result = comments.read_now(pull)
    except (ForgeError, SecretUnreadable) as error:
        return True, f"could not read it yet: {error}"
    return not result.unknown, result.skipped or "; ".join(result.problems) or f"{result.comments} new comments"


def replay_all(rows: Iterable[Delivery]) -> tuple[int, list[str]]:
    """Replay deliveries, all with one task. Returns how many, and a line for each whose content was not kept."""
    taken: list[int] = []
    left: list[str] = []
    for row in rows:
        if row.body and row.outcome not in (Outcome.REJECTED, Outcome.FOREIGN, Outcome.UNWANTED):
            taken.append(row.pk)
        else:
            left.append(f"{row} was {row.get_outcome_display()}: its content was not kept, so it cannot be replayed.")
    with transaction.atomic():
        for start in range(0, len(taken), BATCH):
            Delivery.objects.filter(pk__in=taken[start : start + BATCH]).update(
                outcome=Outcome.ACCEPTED, reason="replayed", tries=0, next_try_at=None, handled_at=None
            )
        if taken:
            async_task("enrollment.tasks.take_deliveries", save=False, task_name="take deliveries")
    return len(taken), left


def drop_old() -> int:
    """Drop deliveries older than CC_CI_DELIVERY_DAYS. Returns how many."""
    before, dropped = timezone.now() - timedelta(days=settings.CC_CI.delivery_days), 0
    while pks := list(Delivery.objects.filter(received_at__lt=before).values_list("pk", flat=True)[:BATCH]):
        dropped += Delivery.objects.filter(pk__in=pks).delete()[0]
    return dropped
