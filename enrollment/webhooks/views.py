"""The endpoint for the forges' deliveries, and the page with the steps for adding a hook manually."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import DatabaseError, IntegrityError
from django.http import Http404, HttpRequest, HttpResponse
from django.http.request import UnreadablePostError
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.html import format_html, format_html_join
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from controlplane.templatetags.frame import weblink
from enrollment.forge_access.clients import kind_of
from enrollment.models import Repository, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.webhooks import receiver
from enrollment.webhooks.lifecycle import State
from enrollment.webhooks.plan import KEY, key_in
from enrollment.webhooks.receiver import OUTCOMES, Answer
from enrollment.webhooks.registration import SeenTo, secret_by_hand

log = logging.getLogger(__name__)

#: In a session: the hook whose new secret its next page shows.
MADE = "webhook_made"


@csrf_exempt
def receive(request: HttpRequest, forge: str) -> HttpResponse:
    """`POST /hooks/<forge>/`: receive a delivery. Every response is a row of the table of outcomes."""
    return respond(lambda: _answer(request, forge))


def respond(take: Callable[[], Answer]) -> HttpResponse:
    """The response to a delivery, whatever happens while it is taken in."""
    try:
        answer = take()
    except DatabaseError as error:
        log.error("Could not store a delivery: %s", error)
        answer = Answer(OUTCOMES["unwell"])
    except Exception:
        log.exception("Could not process a delivery")
        answer = Answer(OUTCOMES["unwell"])
    outcome = answer.outcome
    response = HttpResponse(status=outcome.status, content_type="text/plain; charset=utf-8")
    if outcome.status != 204:
        response.content = f"{outcome.name}{': ' if answer.reported else ''}{answer.reported}\n".encode()
    if outcome.name == "method":
        response["Allow"] = "POST"
    return response


def _answer(request: HttpRequest, forge: str) -> Answer:
    headers: Mapping[str, str] = request.headers
    if wrong := receiver.judge_head(request.method or "", headers):
        return Answer(wrong)
    body = body_of(request)
    if isinstance(body, Answer):
        return body
    signed = receiver.signer(forge, key_in("?" + request.META.get("QUERY_STRING", "")), body, headers)
    return receiver.take_in(*signed, headers, body) if signed else Answer(OUTCOMES["unsigned"])


def body_of(request: HttpRequest) -> bytes | Answer:
    """The body of a delivery, or why it is not read."""
    try:
        body = request.body
    except RequestDataTooBig:
        return Answer(OUTCOMES["large"])
    except UnreadablePostError:
        return Answer(OUTCOMES["unsigned"])  # it disconnected while sending
    return body if len(body) <= receiver.MAX_BODY else Answer(OUTCOMES["large"])


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def by_hand(request: HttpRequest, pk: int) -> HttpResponse:
    """The steps for adding a repository's hook manually, for people with a login. A POST creates a secret and leads back to the
    page, which shows it once: to this session, and only if it is opened next. The session holds the hook's id, not the secret.
    """
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    if not (request.user.is_active and request.user.is_staff):
        raise Http404
    if not any(request.user.has_perm(f"enrollment.{right}_repository") for right in ("view", "change")):
        raise PermissionDenied
    row = get_object_or_404(Repository.objects.select_related("forge"), pk=pk)
    if request.method == "POST":
        if not request.user.has_perm("enrollment.change_repository"):
            raise PermissionDenied
        try:
            made = secret_by_hand(row)
        except (SeenTo, IntegrityError) as error:
            return render(request, "enrollment/webhook.html", steps(row) | {"problem": str(error)}, status=409)
        receiver.forget()
        request.session[MADE] = made.pk
        return redirect("webhook_by_hand", pk=row.pk)
    secret = ""
    if request.method == "GET" and (made_pk := request.session.pop(MADE, None)):
        hook = WebhookConfig.objects.filter(pk=made_pk, repository=row, by_hand=True).first()
        secret = hook.reveal_secret() if hook else ""
    return render(request, "enrollment/webhook.html", steps(row) | {"secret": secret})


def steps(row: Repository) -> dict[str, object]:
    """The context of the manual steps for a repository: everything but the secret."""
    hooks = list(WebhookConfig.objects.filter(repository=row).select_related("repository"))
    hook = next((hook for hook in hooks if hook.state != State.ROTATING), None)
    organisation = None
    if row.owner_id is not None:
        everybodys = WebhookConfig.objects.filter(forge=row.forge_id, owner_id=row.owner_id, repository=None)
        organisation = everybodys.exclude(state__in=[State.ROTATING, State.REFUSED, State.ABSENT]).first()
    kind = kind_of(row.forge)
    url = hook.url if hook else f"{hooks_address(row.forge_id)}?{KEY}=…"
    page, name = weblink(row.html_url) and kind.pages.hooks.format(repository=row.html_url), "the repository’s webhooks"
    link = format_html('<a href="{}">{}</a>', page, name) if page else name
    events = format_html_join(" and ", "<strong>{}</strong>", ((event.label,) for event in kind.events))
    return {
        "repository": row,
        "hook": hook,
        "organisation": organisation,
        "steps": [format_html(step, hooks=link, url=url, events=events) for step in kind.hook_steps],
        "by_hand": hook is None or hook.by_hand or hook.remote_id is None,
    }
