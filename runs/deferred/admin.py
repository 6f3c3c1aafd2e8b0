"""Admin of deferred tests: read-only, except for an entry's recipe and reopening entries that were closed too early."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from controlplane.adminsite import NotDone, row_action
from runs.deferred import registry
from runs.models import DeferredItem


@admin.register(DeferredItem)
class DeferredItemAdmin(ModelAdmin):
    list_display = ("slug", "filed_on", "recipe", "recipe_by", "standing", "closed_commit", "source")
    list_filter = ("state", "ticked", "unproven", "recipe_by", "recipe", ("vanished_at", admin.EmptyFieldListFilter))
    search_fields = ("slug", "what", "closed_commit", "closed_test", "source")
    list_select_related = ("recipe", "source_repository")
    date_hierarchy = "filed_on"
    fields = (
        ("slug", "filed_on", "state"),
        ("recipe", "recipe_by"),
        ("what",),
        ("filed_by", "why"),
        ("trigger", "linked"),
        ("source", "line", "ticked", "vanished_at"),
        ("closed_at", "closed_commit", "closed_test"),
        ("proof", "unproven", "pull_url"),
    )
    actions = ["reopen"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return tuple(name for group in self.fields for name in group if name != "recipe")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: DeferredItem, form: Any, change: bool) -> None:
        if "recipe" in form.changed_data:
            by = DeferredItem.RecipeBy.HAND if obj.recipe else DeferredItem.RecipeBy.NOBODY
            DeferredItem.objects.filter(pk=obj.pk).update(recipe=obj.recipe, recipe_by=by)

    @display(description="state", label={"open": "warning", "closed": "success", "closed, box empty": "info", "gone": "danger"})
    def standing(self, item: DeferredItem) -> str:
        if item.vanished_at:
            return "gone"
        return "closed, box empty" if item.state == DeferredItem.State.CLOSED and not item.ticked else item.state

    @row_action("Reopen (closed here while the box is still empty)", "change")
    def reopen(self, request: HttpRequest, item: DeferredItem) -> str:
        if not registry.reopen(DeferredItem.objects.filter(pk=item.pk)):
            raise NotDone(f"{item} is open, or its box is ticked.")
        return f"Reopened {item}."
