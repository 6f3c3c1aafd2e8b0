"""Base classes for the admin classes of all apps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.admin import SimpleListFilter
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline


class ReadOnlyAdmin(ModelAdmin):
    """Read-only admin for records of what happened: no adding, changing or deleting."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_act_permission(self, request: HttpRequest) -> bool:
        """For actions on the rows (`permissions=["act"]`): nobody edits these rows, so Django's change permission is what
        counts.
        """
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")


class ReadOnlyInline(TabularInline):
    """The same for inlines."""

    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def choices(title: str, parameter: str, offered: Mapping[str, tuple[str, Q]]) -> type[SimpleListFilter]:
    """A filter of a list with these choices: value -> (label, condition).

    For columns without choices of their own, whose values Django would collect by reading the whole table.
    """

    class Filter(SimpleListFilter):
        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            return [(value, label) for value, (label, _) in offered.items()]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            chosen = offered.get(self.value() or "")
            return queryset.filter(chosen[1]) if chosen else queryset

    Filter.title, Filter.parameter_name = title, parameter
    return Filter


def values(title: str, field: str, offered: Mapping[str, str]) -> type[SimpleListFilter]:
    """The same for the values of one column: value -> label."""
    return choices(title, field, {value: (label, Q(**{field: value})) for value, label in offered.items()})
