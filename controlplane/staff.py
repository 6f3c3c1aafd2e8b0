"""Who may see a page for staff: those with Django's permission to view or change what it is about."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from django.contrib.admin.views.decorators import staff_member_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse

View = TypeVar("View", bound=Callable[..., HttpResponse])


def may_see(user: Any, model: str) -> bool:
    """Whether this person may see the rows of a model, such as runs.testrun."""
    app, _, name = model.partition(".")
    return bool(getattr(user, "is_staff", False)) and any(user.has_perm(f"{app}.{right}_{name}") for right in ("view", "change"))


def to_see(model: str) -> Callable[[View], View]:
    """Restrict a page to those who may see the rows of this model. Other staff get 403, everybody else the login."""

    def decorate(view: View) -> View:
        @wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not may_see(request.user, model):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return staff_member_required(checked)  # type: ignore[return-value]

    return decorate
