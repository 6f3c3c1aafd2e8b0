"""What forges, repositories and webhooks contribute to the admin's start page."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Count, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from controlplane.operator_page import SHOWN, listed
from controlplane.registry import Concern
from controlplane.staff import may_see
from enrollment.forge_access import rate_limit
from enrollment.models import Comment, Forge, Repository, Right, WebhookConfig

S = WebhookConfig.State
#: States of a webhook in which it delivers nothing, or not surely, with the level and what can be done.
HOOKS = {
    S.REFUSED: ("warning", "refused: the token may not register it", "See what to do"),
    S.UNHEALTHY: ("error", "unhealthy: it missed a comment", "See why"),
    S.DRIFTED: ("warning", "changed at the forge", "Reconcile it"),
    S.DISABLED: ("warning", "disabled at the forge", "See what to do"),
}


def concerns(request: HttpRequest) -> Iterator[Concern]:
    if may_see(request.user, "enrollment.forge"):
        yield from _forges()
    if may_see(request.user, "enrollment.webhookconfig"):
        yield from _hooks()


def _forges() -> Iterator[Concern]:
    """Forges that fail, permissions that are missing, and what waits there: one query."""
    waiting = Comment.objects.filter(forge=OuterRef("pk"), outcome="").exclude(last_error="").order_by()
    troubled = Repository.objects.filter(forge=OuterRef("pk"), active=True).exclude(last_error="").order_by()
    refused = Right.objects.filter(forge=OuterRef("pk"), name="read", held=Right.Held.NO).order_by()
    forges = Forge.objects.filter(enabled=True).select_related("traffic")
    for forge in forges.annotate(
        stuck=_number(waiting),
        troubled=_number(troubled),
        unreadable=_number(refused.filter(Q(repository=None) | Q(repository__active=True))),
    ):
        url = reverse("admin:enrollment_forge_change", args=[forge.pk])
        circuit = rate_limit.circuit_message(getattr(forge, "traffic", None), timezone.now())
        if circuit or (forge.failures and forge.last_error):
            token = "401" in forge.last_error.partition("\n")[0]
            text = f"{forge.name} {'refuses our token' if token else 'does not answer as it should'}"
            yield Concern(
                "error", text, (circuit or forge.last_error)[:300], url, "Enter a new token" if token else "See the forge"
            )
        if forge.unreadable:
            text = f"{forge.name}: the token may not read {forge.unreadable} of the places it should"
            yield Concern(
                "error", text, "", listed("enrollment.right", f"forge__id__exact={forge.pk}&held__exact=no"), "See which"
            )
        if forge.troubled:
            query = f"forge__id__exact={forge.pk}&active__exact=1&trouble=yes"
            text = f"{forge.name}: {forge.troubled} repositories have a problem"
            yield Concern("warning", text, "", listed("enrollment.repository", query), "See which")
        if forge.stuck:
            query = f"forge__id__exact={forge.pk}&outcome__exact="
            text = f"{forge.name}: {forge.stuck} comments could not be handled yet"
            yield Concern("error", text, "They are tried again.", listed("enrollment.comment", query), "See why")


def _number(rows: object) -> Coalesce:
    return Coalesce(Subquery(rows.values("forge").annotate(number=Count("pk")).values("number")), 0)  # type: ignore[attr-defined]


def _hooks() -> Iterator[Concern]:
    rows = WebhookConfig.objects.filter(state__in=HOOKS, forge__enabled=True).select_related("repository")
    shown = list(rows.order_by("-state_at")[: SHOWN + 1])
    for hook in shown[:SHOWN]:
        level, what, fix = HOOKS[S(hook.state)]
        url = reverse("webhook_by_hand", args=[hook.repository_id]) if hook.repository_id and hook.state == S.REFUSED else ""
        url = url or reverse("admin:enrollment_webhookconfig_change", args=[hook.pk])
        yield Concern(level, f"The webhook of {hook.place} is {what}", hook.reason[:300], url, fix)  # type: ignore[arg-type]
    if len(shown) > SHOWN:
        yield Concern("warning", "More webhooks have a problem", "", listed("enrollment.webhookconfig"), "See all of them")
