"""Who may see which runs, and who may do something to them: one answer for the pages, the API and the feeds.

An account of this server has its permissions. A visitor who logged in with a forge sees what they see there, and may do what a
comment of theirs could.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse

from controlplane.pages import may_see_private
from enrollment.access.authorization import Person
from enrollment.forge_login import visitors
from enrollment.models import Repository
from enrollment.models.core import RepositoryQuerySet
from runs import approval
from runs.models import TestRun


def visible_runs(request: HttpRequest) -> QuerySet[TestRun]:
    """The runs that this user may see."""
    runs = TestRun.objects.select_related("repository__forge", "pull_request")
    if may_see_private(request):
        return runs
    # Of the run's own column, and as a "not": else SQLite may begin with the repositories, and read all their runs.
    hidden = Repository.objects.filter(private=True).exclude(pk__in=visitors.private_seen(request))
    return runs.exclude(repository__in=hidden)


def visible_repositories(request: HttpRequest) -> RepositoryQuerySet:
    """The repositories that this user may see."""
    rows = Repository.objects.all()
    return rows if may_see_private(request) else rows.filter(Q(private=False) | Q(pk__in=visitors.private_seen(request)))


def may_see(request: HttpRequest, repository: Repository) -> HttpResponse | None:
    """None if this user may see the repository's runs; else the way to the login. Raises Http404 for who has logged in."""
    if not repository.private or may_see_private(request) or repository.pk in visitors.private_seen(request):
        return None
    return _not_there(request)


def _not_there(request: HttpRequest) -> HttpResponse:
    if request.user.is_authenticated:
        raise Http404
    return redirect_to_login(request.get_full_path())


def repository_or_login(request: HttpRequest, pk: int) -> Repository | HttpResponse:
    """The repository; what is private is like what is not there, since numbers are easily guessed. Raises Http404."""
    row = visible_repositories(request).select_related("forge").filter(pk=pk).first()
    return row or _not_there(request)


@dataclass(frozen=True)
class Asker:
    """Who asks for something to be done. `person`: as the forge describes them; None for an account of this server."""

    name: str
    person: Person | None = None


def may_act(request: HttpRequest, run: TestRun) -> bool:
    """Whether to show this user the buttons."""
    if approval.may_ask(request.user):
        return True
    return run.pull_request is not None and visitors.may_ask_at(request, run.repository)


def asker(request: HttpRequest, run: TestRun) -> Asker:
    """Who asks for something to be done to a run. Raises PermissionDenied; ForgeError and SecretUnreadable if the forge does not
    say.
    """
    if approval.may_ask(request.user):
        return Asker(request.user.get_username())
    # Without a pull request there is no place for a comment.
    person = visitors.person_at(request, run.repository) if run.pull_request else None
    if person is None or not person.trusted:
        raise PermissionDenied(f"{person.login} {person.standing()}" if person else "")
    return Asker(person.login, person)
