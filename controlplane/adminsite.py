"""Base classes for the admin classes of all apps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from typing import Any

from django.contrib import messages
from django.contrib.admin import SimpleListFilter
from django.core.paginator import Paginator
from django.db.models import Max, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.html import strip_tags
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action
from unfold.views import ChangeList

#: Rows of a list that are counted, and so can be paged through; older ones are found by search and filters.
COUNTED = 10_000
#: Rows that a search by text reads, where there may be millions.
SEARCHED = 100_000


def among_newest(model: Any) -> Q:
    """Of a table with numbers as keys: the newest SEARCHED rows."""
    return Q(pk__gt=(model._base_manager.aggregate(newest=Max("pk"))["newest"] or 0) - SEARCHED)


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than COUNTED, which takes as long for a million rows as for ten thousand."""

    template_name = "controlplane/_admin_pages.html"

    @cached_property
    def counted(self) -> int:
        return int(self.object_list.order_by()[: COUNTED + 1].count())  # type: ignore[attr-defined]

    @cached_property
    def count(self) -> int:
        return min(self.counted, COUNTED)


class _List(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.full_result_count = self.result_count  # the whole table is not counted


class BigAdmin(ModelAdmin):
    """For tables that grow with every run, up to millions of rows: a list reads one page of them, by an index.

    `deferred`: columns that a list does not read. Lists are in the order of the primary key unless `ordering` names an index.
    """

    list_per_page = 50
    show_full_result_count = False
    list_max_show_all = 0
    list_disable_select_all = True
    list_fullwidth = True
    paginator = BoundedPaginator
    ordering: tuple[str, ...] = ("-pk",)
    sortable_by = ()
    deferred: tuple[str, ...] = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _List

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        match = request.resolver_match
        return rows.defer(*self.deferred) if match and str(match.url_name).endswith("_changelist") else rows

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        """Of the newest rows only: a text may be anywhere, so each is read."""
        if search_term:
            queryset = queryset.filter(among_newest(self.model))
        return super().get_search_results(request, queryset, search_term)


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


Offered = Mapping[str, tuple[str, Q]]


def choices(title: str, parameter: str, offered: Offered | Callable[[], Offered]) -> type[SimpleListFilter]:
    """A filter of a list with these choices: value -> (label, condition).

    For columns without choices of their own, whose values Django would collect by reading the whole table.
    """

    class Filter(SimpleListFilter):
        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            self.offered = offered() if callable(offered) else offered
            return [(value, label) for value, (label, _) in self.offered.items()]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            chosen = self.offered.get(self.value() or "")
            return queryset.filter(chosen[1]) if chosen else queryset

    Filter.title, Filter.parameter_name = title, parameter
    return Filter


def values(title: str, field: str, offered: Mapping[str, str]) -> type[SimpleListFilter]:
    """The same for the values of one column, among the newest rows: value -> label."""
    of_column = choices(
        f"{title} (newest {SEARCHED:,})", field, {value: (label, Q(**{field: value})) for value, label in offered.items()}
    )

    class Newest(of_column):  # type: ignore[valid-type, misc]
        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            rows: QuerySet[Any] = super().queryset(request, queryset)
            return rows.filter(among_newest(rows.model)) if self.value() in offered else rows

    return Newest


#: Rows that one action is done to.
AT_ONCE = 100
Text = str | SafeString


class NotDone(Exception):
    """An action was not done to a row. The message, a sentence, says why and what to do."""


def ask(page: ModelAdmin, request: HttpRequest, name: str, title: str, rows: list[tuple[Any, str, str]], danger: bool) -> Any:
    """The page that says what an action will do to each row; its form sends `sure`. Rows: row, words, command."""
    context = {"opts": page.model._meta, "title": title, "name": name, "rows": rows, "danger": danger}
    return render(request, "controlplane/admin_ask.html", {**page.admin_site.each_context(request), **context})


def row_action(
    label: str, permission: str, says: str = "", *, danger: bool = False
) -> Callable[[Callable[[Any, HttpRequest, Any], Text]], Any]:
    """Make an action of a function that does one thing to one row and returns what happened, or raises NotDone.

    `permission`: as for Django's actions. With `says`, a sentence in which `{row}` is the row, it asks first. What was done is
    in the row's history, with who did it.
    """

    def decorate(do: Callable[[Any, HttpRequest, Any], Text]) -> Any:
        @action(description=f"{label} …" if says else label, permissions=[permission])
        @wraps(do)
        def act(page: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
            rows = list(queryset[: AT_ONCE + 1])
            if len(rows) > AT_ONCE:
                page.message_user(request, f"Select at most {AT_ONCE} at once.", messages.ERROR)
                return None
            if says and request.POST.get("sure") != "yes":
                what: list[tuple[Any, str, str]] = [(row, says.format(row=row), "") for row in rows]
                return ask(page, request, do.__name__, label, what, danger)
            for row in rows:
                try:
                    done = do(page, request, row)
                except NotDone as error:
                    page.message_user(request, str(error), messages.ERROR)
                    continue
                page.log_change(request, row, f"{label}: {strip_tags(done)}")
                page.message_user(request, done, messages.SUCCESS)
            return None

        return act

    return decorate
