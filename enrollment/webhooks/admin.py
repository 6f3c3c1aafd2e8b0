"""Webhooks and their deliveries in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from unfold.decorators import action, display

from controlplane.adminsite import AT_ONCE, BigAdmin, NotDone, ReadOnlyAdmin, row_action
from enrollment.models import Comment, Delivery, Forge, Repository, WebhookConfig
from enrollment.webhooks.plan import WRITES
from enrollment.webhooks.process import replay_all
from enrollment.webhooks.reconcile import reconcile
from enrollment.webhooks.registration import rotate
from enrollment.webhooks.views import steps

STATES = {
    "verified": "success",
    "registered": "info",
    "rotating": "info",
    "absent": "info",
    "unhealthy": "danger",
    "drifted": "danger",
    "disabled": "warning",
    "refused": "warning",
}
OUTCOMES = {
    "a comment": "success",
    "a known comment": "success",
    "the pull request was polled": "success",
    "to be processed": "info",
    "nothing": "info",
    "not needed": "info",
    "outside the hook's scope": "warning",
    "unreadable": "danger",
    "failed": "danger",
}


@display(description="webhook")
def webhook_of(row: Repository) -> str:
    """For a repository's page: the state of its hook, the manual steps, and where to get the secret."""
    return render_to_string("enrollment/_webhook.html", steps(row))


def reconcile_soon(forge: Forge, repository: Repository | None = None) -> None:
    """The desired state changed: let the next pass check these hooks, whenever they were last checked."""
    hooks = WebhookConfig.objects.filter(forge=forge)
    if repository is not None:
        hooks = hooks.filter(owner_id=repository.owner_id)
    hooks.update(next_check_at=None)


@admin.register(WebhookConfig)
class WebhookConfigAdmin(ReadOnlyAdmin):
    list_display = ("where", "forge", "standing", "short_reason", "state_at", "checked_at", "made_by")
    list_filter = ("state", "by_hand", "forge")
    search_fields = ("owner", "repository__name", "reason", "key")
    list_select_related = ("repository", "forge")
    fields = (
        "forge",
        "repository",
        "owner",
        "standing",
        "reason",
        "state_at",
        "url",
        "remote_id",
        "by_hand",
        "ends_at",
        "checked_at",
        "next_check_at",
        "created_at",
    )
    readonly_fields = fields
    actions = ["put_in_order", "new_secret"]

    @display(description="place")
    def where(self, hook: WebhookConfig) -> str:
        return hook.place

    @display(description="added by")
    def made_by(self, hook: WebhookConfig) -> str:
        return "a maintainer" if hook.by_hand else "cc-ci"

    @display(description="state", label=STATES)
    def standing(self, hook: WebhookConfig) -> str:
        return hook.state

    @display(description="reason")
    def short_reason(self, hook: WebhookConfig) -> str:
        return hook.reason[:120]

    @row_action(
        "Reconcile their forges' webhooks now",
        "act",
        "All webhooks of the forge of {row} are compared with what is wanted, and created, repaired or deleted there.",
    )
    def put_in_order(self, request: HttpRequest, hook: WebhookConfig) -> str:
        seen: set[int] = request.__dict__.setdefault("reconciled", set())
        if hook.forge_id in seen:
            return f"Those of {hook.forge} were, already."
        seen.add(hook.forge_id)
        result = reconcile(hook.forge, apply=True, seconds=30)
        lines = [action.text() for action in result.actions if action.do in WRITES]
        if result.problems:
            raise NotDone("; ".join([result.text(), *lines[:20], *result.problems[:20]]))
        return "; ".join([result.text(), *lines[:20]])

    @row_action("Rotate their secrets", "act", "The {row} is replaced by one with a new secret. Both are valid for a while.")
    def new_secret(self, request: HttpRequest, hook: WebhookConfig) -> str:
        begun, left = rotate([] if hook.state == WebhookConfig.State.ROTATING else [hook])
        if begun:
            left += reconcile(hook.forge, apply=True, due_only=True, seconds=30).problems
        if left or not begun:
            raise NotDone(" ".join([f"The secret of {hook.place} was {'' if begun else 'not '}rotated.", *left]))
        return f"The secret of {hook.place} was rotated; the previous one stays valid for a while."


@admin.register(Delivery)
class DeliveryAdmin(BigAdmin, ReadOnlyAdmin):
    list_display = ("received_at", "forge", "event", "action", "about", "status", "result", "short_reason", "run")
    list_filter = ("outcome", "forge", ("received_at", admin.DateFieldListFilter))
    search_fields = ("delivery_id", "reason", "repository__name")
    search_help_text = "An id, a recipe or a reason, among the newest"
    list_select_related = ("forge", "repository")
    deferred = ("body",)
    fields = (
        "forge",
        "delivery_id",
        "received_at",
        "hook",
        "event",
        "action",
        "about",
        "forge_comment_id",
        "status",
        "result",
        "reason",
        "comment",
        "run",
        "handled_at",
        "tries",
        "body",
    )
    readonly_fields = fields
    actions = ["take_again"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).annotate(run_id=F("comment__run"))

    @display(description="about")
    def about(self, delivery: Delivery) -> str:
        name = delivery.repository.full_name if delivery.repository else ""
        return f"{name}#{delivery.number}" if delivery.number else name

    @display(description="outcome", label=OUTCOMES)
    def result(self, delivery: Delivery) -> str:
        return Delivery.Outcome(delivery.outcome).label

    @display(description="reason")
    def short_reason(self, delivery: Delivery) -> str:
        return delivery.reason[:120]

    @display(description="run")
    def run(self, delivery: Delivery) -> Any:
        # Packages above attach rows to the comment; this one does not import them.
        model: Any = Comment._meta.get_field("run").related_model
        run = delivery.run_id and model(pk=delivery.run_id)  # type: ignore[attr-defined]
        return format_html('<a href="{}" class="cc-link">{}</a>', run.get_absolute_url(), run) if run else "–"

    @action(description="Replay (a comment never counts twice)", permissions=["act"])
    def take_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Of any number: one task takes them all."""
        taken, left = replay_all(queryset)
        self.message_user(request, f"{taken} queued for replay.")
        for delivery in queryset[:AT_ONCE]:
            self.log_change(request, delivery, "Asked for a replay.")
        for line in left[:20]:
            self.message_user(request, line, messages.WARNING)
        if len(left) > 20:
            self.message_user(request, f"And {len(left) - 20} more whose content was not kept.", messages.WARNING)
