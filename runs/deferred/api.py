"""The API's operation on deferred tests."""

# No `from __future__ import annotations`: django-ninja needs those of paginated functions as objects.

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest
from ninja import Field, Query, Router, Schema
from ninja.pagination import paginate

from controlplane.api import FullName, Newest, Number, Scope, answers, one_of
from controlplane.pages import may_see_private
from runs.deferred import registry
from runs.models import DeferredItem

State = Annotated[DeferredItem.State, one_of(DeferredItem.State)]

router = Router(tags=["deferred"])


class Deferred(Schema):
    id: Number
    slug: str
    file: str = Field(validation_alias="file_name", description="The DEFERRED.md that it is an entry of.")
    filed_on: date
    filed_by: str
    what: str
    why: str
    trigger: str
    linked: str
    recipe: str | None = Field(description="OWNER/REPO, as far as known.")
    guessed: bool = Field(description="Whether cc-ci guessed the recipe.")
    state: State
    closed_at: datetime | None
    closed_commit: str
    closed_test: str
    proof: UUID | None = Field(validation_alias="proof_id", description="The run that passed the ported test.")
    unproven: bool
    pull_url: str

    @staticmethod
    def resolve_recipe(row: DeferredItem) -> str | None:
        return row.recipe.full_name if row.recipe else None


class Filters(Schema):
    state: State | None = None
    recipe: FullName | None = None


@router.get("", **answers(Scope.READ, list[Deferred]))
@paginate(Newest)
def list_deferred(request: HttpRequest, filters: Query[Filters]) -> QuerySet[DeferredItem]:
    """List the entries of all DEFERRED.md, those read last first."""
    rows = registry.items(filters.recipe or "")
    if not may_see_private(request):
        rows = registry.public(rows)
    return rows.filter(state=filters.state) if filters.state else rows
