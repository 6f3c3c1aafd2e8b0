"""What others show of a recipe: its badge, and its feed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.syndication.views import Feed
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.feedgenerator import Atom1Feed
from django.utils.html import escape
from django.views.decorators.http import require_safe

from controlplane.untrusted import plain
from enrollment.models import Repository
from runs import card as drawing
from runs.models import FINAL, State, TestRun
from runs.overview import Overview, overviews
from runs.render import HEADLINE
from runs.templatetags.run_pages import tone, words

#: Entries of a feed.
NEWEST = 30
#: For how many seconds a badge may be kept: those who merge want to see the newest.
KEPT = 60
#: Pixels of a letter of the badge, on average, and of the space beside a text.
LETTER, MARGIN = 6.6, 10


@require_safe
def badge(request: HttpRequest, owner: str, name: str) -> HttpResponse:
    """`/badge/<owner>/<recipe>.svg`: the newest verdict, and the level. `?forge=` where several forges have that name.

    The same for a private repository and for one that is not there, whoever asks: pictures are embedded in other pages.
    """
    rows = Repository.objects.watched().filter(private=False, owner__iexact=owner, name__iexact=name).select_related("forge")
    forge = request.GET.get("forge", "").rstrip("/")
    found = [row for row in rows.order_by("pk") if forge in ("", row.forge.name, row.forge.url)]
    text, colour = said(overviews(found[:1])[0]) if found else ("unknown", "quiet")
    label = "cc-ci"
    widths = [round(len(part) * LETTER) + 2 * MARGIN for part in (label, text)]
    context = {"label": label, "text": text, "tone": colour, "left": widths[0], "right": widths[1], "width": sum(widths)}
    context |= {"middle_left": widths[0] / 2, "middle_right": widths[0] + widths[1] / 2}
    response = HttpResponse(render_to_string("runs/badge.svg", context), content_type="image/svg+xml; charset=utf-8")
    response["Cache-Control"] = f"public, max-age={KEPT}"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    return response


def said(overview: Overview) -> tuple[str, str]:
    """The text and the colour of a recipe's badge."""
    if not overview.state:
        return "not tested yet", "quiet"
    level = "" if overview.level is None else f", level {overview.level}"
    return f"{overview.state.replace('_', ' ')}{level}", tone(overview.state)


def badge_markdown(row: Repository) -> str:
    """What to paste into a README: the badge, which leads to the recipe's page."""
    base = settings.CC_CI.base_url
    picture = base + reverse("badge", args=[row.owner, row.name])
    return f"[![cc-ci]({picture})]({base}{reverse('recipe', args=[row.pk])})"


@require_safe
def card(request: HttpRequest, run_id: UUID) -> HttpResponse:
    """The picture for previews of a link to a run of a public recipe. Those who make previews have no login."""
    run = get_object_or_404(TestRun.objects.select_related("repository", "pull_request").defer("log", "details"), pk=run_id)
    if run.repository.private:
        raise Http404
    state = State(run.state)
    stages = [(stage.name, words(stage.status), tone(stage.status)) for stage in run.stage_results.all()]
    facts = [run.short_sha]
    facts += [f"pull request #{run.pull_request.number}"] if run.pull_request else []
    facts += [] if run.level is None else [f"level {run.level} of 5"]
    picture = drawing.draw(run.repository.full_name, HEADLINE[state], tone(state), stages, " · ".join(facts))
    response = HttpResponse(picture, content_type="image/png")
    response["Cache-Control"] = f"public, max-age={KEPT}"
    response["X-Content-Type-Options"] = "nosniff"
    return response


class RecipeFeed(Feed):  # type: ignore[type-arg]  # no type parameters when Django runs
    """The newest runs of a public recipe that ended, as Atom."""

    feed_type = Atom1Feed

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Repository:
        row = get_object_or_404(Repository, pk=kwargs["repository_id"])
        if row.private:  # a reader of feeds has no login
            raise Http404
        return row

    def title(self, obj: Repository) -> str:
        return f"cc-ci: {plain(obj.full_name, 200)}"

    def link(self, obj: Repository) -> str:
        return reverse("recipe", args=[obj.pk])

    def subtitle(self, obj: Repository) -> str:
        return f"Test runs of {plain(obj.full_name, 200)}"

    def items(self, obj: Repository) -> list[TestRun]:
        runs = obj.runs.filter(state__in=FINAL, finished_at__isnull=False).select_related("repository", "pull_request")
        return list(runs.defer("log", "details").order_by("-created_at")[:NEWEST])

    def item_title(self, item: Any) -> str:
        pull = item.pull_request
        what = f"pull request {pull.number}, {pull.title}" if pull else item.ref
        return plain(f"{item.repository.name} {HEADLINE[State(item.state)]}: {what}", 300)

    def item_description(self, item: Any) -> str:
        return escape(plain(item.reason, 1000))  # readers take it for HTML

    def item_link(self, item: Any) -> str:
        return str(item.get_absolute_url())

    def item_guid(self, item: Any) -> str:
        return UUID(str(item.pk)).urn

    def item_updateddate(self, item: Any) -> datetime:
        return item.finished_at  # type: ignore[no-any-return]

    item_pubdate = item_updateddate
