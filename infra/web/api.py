"""The API's operations on the server's own apps: reading only."""

# No `from __future__ import annotations`: django-ninja needs those of paginated functions as objects.

from datetime import datetime
from typing import Annotated, Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Field, Path, Query, Router, Schema
from ninja.pagination import paginate

from controlplane.api import Newest, Number, Refused, Scope, Text, answers, one_of
from controlplane.staff import may_see
from infra.models import InfraApp, Upgrade
from infra.states import UpgradeState
from infra.web.status import describe

Owner = Annotated[InfraApp.Owner, one_of(InfraApp.Owner)]
State = Annotated[InfraApp.State, one_of(InfraApp.State)]

router = Router(tags=["infra"])


class Described(Schema):
    """What the list and the status of an app have in common."""

    name: str
    recipe: str
    domain: str
    owner: Owner
    state: State
    declared: bool
    pinned: str
    running: str


class App(Described):
    id: Number

    @staticmethod
    def resolve_pinned(app: InfraApp) -> str:
        return app.pinned_version

    @staticmethod
    def resolve_running(app: InfraApp) -> str:
        return app.running_version


class Version(Schema):
    version: str
    held: bool
    blockers: list[dict[str, Any]]


class Status(Described):
    """As `cc-ci infra status --json` has it."""

    newest: str
    target: str = Field(description="The version that passes the gate; empty if none does.")
    blockers: list[dict[str, Any]]
    held: list[Version] = Field(description="Versions that are held back, each with its blockers and remedies.")
    by_hand: str
    contested: str = Field(description="What changed without cc-ci; empty if nothing.")
    window: str
    discovered_at: datetime | None
    discovery_error: str


class UpgradeOut(Schema):
    id: Number
    app: str
    from_version: str
    to_version: str
    state: Annotated[UpgradeState, one_of(UpgradeState)]
    trigger: str
    reason: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @staticmethod
    def resolve_app(row: Upgrade) -> str:
        return row.app.name


class Filters(Schema):
    app: Text = ""


@router.get("/apps", **answers(Scope.INFRA, list[App]))
@paginate(Newest)
def list_apps(request: HttpRequest) -> QuerySet[InfraApp]:
    """List the server's own apps."""
    _may_see(request, "infra.infraapp")
    return InfraApp.objects.all()


@router.get("/apps/{app_id}", **answers(Scope.INFRA, Status))
def show_app(request: HttpRequest, app_id: Path[Number]) -> dict[str, Any]:
    """Show one app: what runs, what is newer, and what blocks it."""
    _may_see(request, "infra.infraapp")
    return describe(get_object_or_404(InfraApp, pk=app_id))


@router.get("/upgrades", **answers(Scope.INFRA, list[UpgradeOut]))
@paginate(Newest)
def list_upgrades(request: HttpRequest, filters: Query[Filters]) -> QuerySet[Upgrade]:
    """List the upgrades, newest first."""
    _may_see(request, "infra.upgrade")
    rows = Upgrade.objects.select_related("app").defer("specs", "baseline", "facts", "step")
    return rows.filter(app__name=filters.app) if filters.app else rows


def _may_see(request: HttpRequest, model: str) -> None:
    if not may_see(request.user, model):
        raise Refused(403, f"{request.user.get_username()} may not see this. A superuser gives the permission in the admin.")
