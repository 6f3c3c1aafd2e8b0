"""The JSON API: authentication, errors, pages and description of all operations. The apps register theirs as routers.

An operation names its scope and the type of its answer (`answers`); django-ninja makes the OpenAPI description from the types.
No operation reads a cookie. Every error is JSON with a `message` that says what to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache, wraps
from http import HTTPStatus
from itertools import accumulate
from typing import Annotated, Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.signing import BadSignature, Signer
from django.db.models import QuerySet, TextChoices
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import Field, NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.operation import Operation
from ninja.pagination import PaginationBase
from ninja.security import HttpBearer
from pydantic import WithJsonSchema

from controlplane import tokens
from controlplane.models import ApiToken
from controlplane.pages import rows_after
from controlplane.registry import registry
from controlplane.tokens import Refused as Refused  # for the operations of the apps

log = logging.getLogger(__name__)

#: Most bytes of a request's body.
BODY_BYTES = 16 * 1024
#: Rows in a page: as asked for by default, and at most.
PAGE, MOST = 50, 100
#: The most weight of a page of rows that each come with many others: 5000 tests of a run take some 16 MB of memory and 0.5 s.
HEAVIEST = 5000

Scope = ApiToken.Scope
#: The number of a row.
Number = Annotated[int, Field(ge=1, lt=2**63)]
#: Text without NUL, which no database stores.
Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]
#: OWNER/REPO, as forges name repositories.
FullName = Annotated[str, Field(max_length=300, pattern=r"^[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+$", examples=["recipes/hedgedoc"])]


def one_of(choices: type[TextChoices]) -> WithJsonSchema:
    """The description of a choice, in place: by their names django-ninja would take one `State` for another."""
    return WithJsonSchema({"type": "string", "enum": list(choices.values)})


class Problem(Schema):
    """Why there is no answer, and what to do."""

    message: str


class Token(HttpBearer):
    """Lets requests pass whose token has the scope. They act as the token's user, whatever their cookies say."""

    openapi_bearerFormat = "ccci_…"

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self.scope = scope

    def __call__(self, request: HttpRequest) -> Any:
        _judge(request)
        return super().__call__(request)

    def authenticate(self, request: HttpRequest, token: str) -> ApiToken:
        row = tokens.recognise(request, token)
        if self.scope not in row.scopes:
            raise Refused(403, f"This token lacks the scope {self.scope}. Create another one: cc-ci token add --help")
        request.user = row.user
        return row


def _judge(request: HttpRequest) -> None:
    """Refuse parameters that do not exist, and a body that is too large or not JSON, before anything reads it."""
    assert request.resolver_match and request.method
    if "\0" in request.path:  # PostgreSQL could not store it with a failed login, which would then not count
        raise Http404
    place = f"/{request.resolver_match.route}".replace("<", "{").replace(">", "}")
    parameters = description()["paths"][place][request.method.lower()]["parameters"]
    known = [one["name"] for one in parameters if one["in"] == "query"]
    if unknown := [name for name in request.GET if name not in known]:
        raise Refused(422, f"{unknown[0][:50]!r} is not a parameter. Parameters: {', '.join(known) or 'none'}.")
    if int(request.META.get("CONTENT_LENGTH") or 0) > BODY_BYTES:
        raise Refused(413, f"The request's body is larger than {BODY_BYTES} bytes.")
    if request.method not in ("GET", "HEAD") and request.content_type not in ("", "application/json"):
        raise Refused(415, "Send the body as JSON, with the header Content-Type: application/json.")


class Newest(PaginationBase):
    """Pages of rows, newest first, found by index however many there are: a page begins after the last row of the one before.

    Rows are ordered by the time field `at`, if given, and by their key. Cursors are signed: only those of this listing are taken.
    A page has at most `most` rows, and as many as weigh `HEAVIEST` together, by the field `weight`, but at least one.
    """

    class Input(Schema):
        limit: int = Field(PAGE, ge=1, le=MOST, description="Rows in the answer, at most.")
        cursor: str = Field("", max_length=500, description="`next` of the answer before. Empty: from the newest.")

    class Output(Schema):
        items: list[Any]
        next: str | None = Field(description="The cursor of the next page; null at the end.")

    items_attribute = "items"

    def __init__(self, *, at: str = "", most: int = MOST, weight: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.at, self.most, self.weight = at, most, weight

    def paginate_queryset(self, queryset: QuerySet[Any], pagination: Input, request: HttpRequest, **more: Any) -> dict[str, Any]:
        signer = Signer(salt=f"controlplane.api:{request.path}")
        at, field = self.at, (lambda row: getattr(row, self.at)) if self.at else None
        rows = queryset.order_by(f"-{at}", "-pk") if at else queryset.order_by("-pk")
        if pagination.cursor:
            try:
                place = signer.unsign_object(pagination.cursor)
            except (BadSignature, ValueError):
                raise Refused(404, "There is no such page. Take `next` of the answer before as cursor, unchanged.") from None
            rows = rows_after(rows, at, place[0], place[1]) if at else rows.filter(pk__lt=place[0])
        size = min(pagination.limit, self.most)
        if self.weight:
            weights = rows.prefetch_related(None).values_list(self.weight, flat=True)[:size]
            size = max(1, sum(together <= HEAVIEST for together in accumulate(weights)))
        found = list(rows[: size + 1])
        items, more_to_come = found[:size], len(found) > size
        cursor = None
        if more_to_come:
            last = items[-1]
            key = last.pk if isinstance(last.pk, int) else str(last.pk)
            cursor = signer.sign_object([field(last).isoformat(), key] if field else [key])
        return {"items": items, "next": cursor}


#: What each operation may answer instead of what was asked for.
_ERRORS = frozenset({400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502})


def answers(scope: Scope, model: Any, status: int = 200) -> dict[str, Any]:
    """The arguments of an operation: who may call it, and its answers."""
    return {
        "auth": Token(scope),
        "response": {status: model, _ERRORS: Problem},
        "openapi_extra": {"x-scope": scope.value},
    }


class _API(NinjaAPI):
    def get_openapi_operation_id(self, operation: Operation) -> str:
        return operation.view_func.__name__


api = _API(title="cc-ci", version="1", description="See docs/api.md.", openapi_url=None, docs_url=None)


def _problem(request: HttpRequest, status: int, message: str, **headers: str) -> HttpResponse:
    answer = api.create_response(request, {"message": message}, status=status)
    for name, value in headers.items():
        answer[name.replace("_", "-")] = value
    return answer


@api.exception_handler(Refused)
def _refused(request: HttpRequest, error: Refused) -> HttpResponse:
    headers = {"WWW_Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after:
        headers["Retry_After"] = str(error.retry_after)
    return _problem(request, error.status, str(error), **headers)


@api.exception_handler(AuthenticationError)
def _no_token(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    words = "Send a token, in the header Authorization: Bearer TOKEN. Create one with `cc-ci token add`, or in the admin."
    return _problem(request, 401, words, WWW_Authenticate="Bearer")


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return _problem(request, error.status_code, "The body is not valid JSON." if error.status_code == 400 else str(error))


@api.exception_handler(ValidationError)
def _invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    # Where it is: in the body, after the name of the operation's argument.
    places = [(one["loc"][2:] or ("body",)) if one["loc"][0] == "body" else one["loc"][1:] for one in error.errors]
    lines = [f"{'.'.join(map(str, place))}: {one['msg']}" for place, one in zip(places, error.errors, strict=True)]
    return _problem(request, 422, "; ".join(lines)[:2000])


@api.exception_handler(SuspiciousOperation)
def _malformed(request: HttpRequest, error: SuspiciousOperation) -> HttpResponse:
    return _problem(request, 400, "The request is malformed, or has too many parameters. GET /api/ describes all operations.")


@api.exception_handler(Http404)
def _not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return _problem(request, 404, "There is nothing here, or this token may not see it.")


@api.exception_handler(Exception)
def _fault(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("Could not answer %s %s", request.method, request.path, exc_info=error)
    return _problem(request, 500, "cc-ci failed to answer; its log says why.")


# --- addresses


@csrf_exempt
def nowhere(request: HttpRequest) -> HttpResponse:
    return _problem(request, 404, "There is no such operation. GET /api/ describes all of them.")


@cache
def description() -> dict[str, Any]:
    """The OpenAPI description."""
    return dict(api.get_openapi_schema(path_prefix="/api/"))


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The description: for programs as OpenAPI, for browsers as a page."""
    preferred = request.get_preferred_type(["application/json", "text/html"])
    if preferred != "text/html" or request.GET.get("format") == "json":
        return JsonResponse(description())
    operations = [
        {"method": method.upper(), "path": place, "scope": one["x-scope"], "id": one["operationId"], **one}
        for place, methods in description()["paths"].items()
        for method, one in methods.items()
    ]
    scopes = [{"name": scope.value, "text": scope.label} for scope in Scope]
    context = {"operations": operations, "scopes": scopes, "most": settings.CC_CI.api_requests_per_minute}
    return render(request, "controlplane/api.html", context)


def _finished(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The view, with what all its answers have in common."""

    @wraps(view)
    def finished(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        answer = view(request, *args, **kwargs)
        if answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer["Content-Type"] = api.get_content_type()
            answer.content = json.dumps({"message": f"This address takes {answer['Allow']}."}).encode()
        answer["Cache-Control"] = "no-store"
        return answer

    return finished


def urls() -> list[Any]:
    """All addresses of the API."""
    for prefix, router in registry.routers.items():
        api.add_router(prefix, router)
    found: list[Any] = [path("", index, name="api")]
    for pattern in api.urls[0]:
        assert isinstance(pattern, URLPattern)
        pattern.callback = _finished(pattern.callback)
        found.append(pattern)
    return [*found, re_path("", _finished(nowhere))]
