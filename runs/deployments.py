"""The page of what this installation's runs have on this machine's Docker: a list, logs, and removal by hand. For staff."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_http_methods, require_safe

from controlplane.installation import installation_id
from controlplane.staff import to_see
from infra.deployers.docker import stacks
from infra.deployers.docker.api import listed
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_RUN, labels_of, tail
from infra.deployers.errors import DeployError
from runs.models import TestRun

#: The last lines of each container's log that are shown.
LINES = 200
#: Seconds for a removal while somebody waits for the page; what is left then, the regular sweep removes.
PATIENCE = 20.0


@dataclass
class Deployment:
    """What a run has on this machine. `run`: None if it was deleted."""

    run_id: str
    run: TestRun | None
    services: list[dict[str, Any]] = field(default_factory=list)

    @property
    def at_work(self) -> bool:
        return self.run is not None and self.run.active


def deployments() -> list[Deployment]:
    """Those of this installation, the newest first. Raises DeployError."""
    ours = installation_id()
    found = {run_id: Deployment(run_id, None) for run_id in stacks.list_ours(ours) if _is_id(run_id)}
    for service in listed("service", label=[f"{LABEL_INSTALLATION}={ours}"]):
        if one := found.get(labels_of("service", service).get(LABEL_RUN, "")):
            spec = service["Spec"]
            image = spec["TaskTemplate"].get("ContainerSpec", {}).get("Image", "").partition("@")[0]
            one.services.append({"name": spec["Name"], "image": image, "created": parse_datetime(service["CreatedAt"])})
    for run in TestRun.objects.select_related("repository").defer("log", "details").filter(pk__in=list(found)):
        found[str(run.pk)].run = run
    return sorted(found.values(), key=lambda one: max((str(row["created"]) for row in one.services), default=""), reverse=True)


def _is_id(text: str) -> bool:
    """Whether it is a run's id as cc-ci writes it: a label can also be of a stranger's image."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


@to_see("runs.testrun")
@require_safe
def page(request: HttpRequest) -> HttpResponse:
    context: dict[str, Any] = {"host": settings.CC_CI.host, "found": [], "trouble": ""}
    try:
        context["found"] = deployments()
    except DeployError as error:
        context["trouble"] = str(error)
    return render(request, "runs/deployments.html", context)


@to_see("runs.testrun")
@require_http_methods(["GET", "HEAD", "POST"])
def one(request: HttpRequest, run_id: UUID) -> HttpResponse:
    """One deployment: its services, the end of their logs, and what removing it does; POST removes it."""
    name, may_remove = str(run_id), request.user.has_perm("runs.change_testrun")
    try:
        found = next((item for item in deployments() if item.run_id == name), None)
        if found is None:
            raise Http404("Nothing of such a run is on this machine.")
        if request.method != "POST":
            context = {"host": settings.CC_CI.host, "one": found, "logs": _logs(name), "may_remove": may_remove}
            return render(request, "runs/deployment.html", context)
        if not may_remove:
            raise PermissionDenied
        if found.at_work:
            messages.error(request, "Its run is under way: cancel it, and it is torn down.")
            return redirect(found.run)  # type: ignore[arg-type]  # it has one, or it would not be at work
        left = stacks.remove_run(installation_id(), name, PATIENCE)
    except DeployError as error:
        messages.error(request, str(error))
        return redirect("deployments")
    _record(request, name, left)
    if left:
        messages.error(request, f"Not everything is gone yet; cc-ci tries again every few minutes. Left: {', '.join(left[:10])}")
    else:
        messages.success(request, f"Everything of {found.run or f'run {name[:8]}'} was removed.")
    return redirect("deployments")


def _logs(run_id: str) -> list[tuple[str, str]]:
    """The name of each container, and the end of its log."""
    containers = stacks.of_run(installation_id(), run_id).containers()
    return [(str(item["Name"]).lstrip("/"), tail("logs", f"--tail={LINES}", str(item["Id"]))[1]) for item in containers[:20]]


def _record(request: HttpRequest, run_id: str, left: list[str]) -> None:
    LogEntry.objects.create(
        user_id=int(request.user.pk or 0),
        content_type=ContentType.objects.get_for_model(TestRun),
        object_id=run_id,
        object_repr=f"run {run_id[:8]}",
        action_flag=DELETION,
        change_message=f"Removed its deployment from {settings.CC_CI.host}{f'; left: {len(left)}' if left else ''}.",
    )
