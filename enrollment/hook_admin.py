"""Webhooks and their deliveries in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from unfold.decorators import action, display

from controlplane.adminsite import ReadOnlyAdmin
from enrollment.deliveries import replay_all
from enrollment.hook_reconcile import reconcile
from enrollment.hook_rows import rotate
from enrollment.hook_views import steps
from enrollment.models import Delivery, Forge, Repository, WebhookConfig
from enrollment.webhooks import WRITES

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
    "a comment known already": "success",
    "the pull request is looked at": "success",
    "to be looked at": "info",
    "nothing": "info",
    "not wanted": "info",
    "not ours": "warning",
    "not understood": "danger",
    "failed": "danger",
}


def webhook_of(row: Repository) -> str:
    """For a repository's page: how its hook stands, the steps by hand, and where to get the secret."""
    return render_to_string("enrollment/_webhook.html", steps(row))


def look_soon(forge: Forge, repository: Repository | None = None) -> None:
    """Somebody changed what is wanted: the next pass looks at these hooks, whenever they were looked at last."""
    hooks = WebhookConfig.objects.filter(forge=forge)
    if repository is not None:
        hooks = hooks.filter(owner_id=repository.owner_id)
    hooks.update(next_check_at=None)


@admin.register(WebhookConfig)
class WebhookConfigAdmin(ReadOnlyAdmin):
    list_display = ("where", "forge", "standing", "short_reason", "state_at", "checked_at", "by_hand")
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

    @display(description="state", label=STATES)
    def standing(self, hook: WebhookConfig) -> str:
        return hook.state

    @display(description="reason")
    def short_reason(self, hook: WebhookConfig) -> str:
        return hook.reason[:120]

    @action(description="Look at their forges' hooks now, and put them in order", permissions=["act"])
    def put_in_order(self, request: HttpRequest, queryset: QuerySet[WebhookConfig]) -> None:
        for forge in Forge.objects.filter(enabled=True, hooks__in=queryset).distinct():
            result = reconcile(forge, apply=True, seconds=30)
            lines = [action.words() for action in result.actions if action.do in WRITES] + result.problems
            self.message_user(
                request, "; ".join([result.words(), *lines[:20]]), messages.WARNING if result.problems else messages.SUCCESS
            )

    @action(description="Give them new secrets", permissions=["act"])
    def new_secret(self, request: HttpRequest, queryset: QuerySet[WebhookConfig]) -> None:
        begun, left = rotate(list(queryset.exclude(state=WebhookConfig.State.ROTATING)))
        for forge in Forge.objects.filter(hooks__in=[hook.pk for hook in begun]).distinct():
            result = reconcile(forge, apply=True, due_only=True, seconds=30)
            left += result.problems
        text = f"{len(begun)} new secrets; the old ones count for a while longer."
        self.message_user(request, " ".join([text, *left]), messages.WARNING if left else messages.SUCCESS)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = ("received_at", "forge", "event", "action", "about", "status", "result", "short_reason", "run")
    list_filter = ("outcome", "status", "forge", ("received_at", admin.DateFieldListFilter))
    search_fields = ("delivery_id", "reason", "repository__owner", "repository__name", "forge_comment_id")
    list_select_related = ("forge", "repository", "comment")
    date_hierarchy = "received_at"
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
        # Rooms above hang their rows on the comment; this one does not know them by name.
        run = getattr(delivery.comment, "run", None)
        return format_html('<a href="{}">{}</a>', run.get_absolute_url(), run) if run is not None else ""

    @action(description="Take them once more (a comment never counts twice)", permissions=["act"])
    def take_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        taken, left = replay_all(queryset)
        self.message_user(request, f"{taken} are taken again.")
        for line in left[:20]:
            self.message_user(request, line, messages.WARNING)
        if len(left) > 20:
            self.message_user(request, f"And {len(left) - 20} more of which nothing was kept.", messages.WARNING)
