"""The API: authentication, routing, permissions, and common responses."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.model import Repo, Token, User
from enrollment.fakeforge.render import Renderer, encode
from enrollment.fakeforge.store import Forge

PREFIX = "/api/v1"
MAX_ITEMS = 50
DEFAULT_ITEMS = 30


class Refused(Exception):
    """Ends a request with a response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass
class Call:
    """A request being handled by a route: its path parameters, its user, and helpers for responses."""

    forge: Forge
    request: Request
    user: User | None
    token: Token | None
    names: dict[str, str]

    def __post_init__(self) -> None:
        self.query = self.request.parameters
        self.render = Renderer(self.forge, self.user)

    # Responses

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A JSON response."""
        return Response(status, encode(value), {"Content-Type": "application/json;charset=utf-8", **(headers or {})})

    def error(self, status: int, message: str) -> Refused:
        """An error to raise, with the body that all but 404 have."""
        return Refused(self.answer({"message": message, "url": f"{self.forge.url}/api/swagger"}, status))

    def missing(self, *errors: str, message: str = "") -> Refused:
        """A 404 to raise. Also used for what the user may not see."""
        features = self.forge.features
        body = {
            features.not_found_url_key: f"{self.forge.url}/api/swagger",
            "errors": list(errors) or None,
            "message": message or features.not_found,
        }
        return Refused(self.answer(body, 404))

    def redirect(self, path: str) -> Refused:
        """A redirect to raise, to another path with the same query."""
        query = f"?{self.request.query}" if self.request.query else ""
        return Refused(Response(self.forge.features.redirect_status, b"", {"Location": path + query}))

    def window(self) -> tuple[int, int]:
        """Page (from 1) and page size from the query; at most MAX_ITEMS."""
        page, limit = self.number("page"), self.number("limit")
        return max(page, 1), min(limit, MAX_ITEMS) if limit > 0 else DEFAULT_ITEMS

    def page(self, rows: Sequence[Any], render: Callable[[Any], object], link_size: int = 0, *, counted: bool = True) -> Response:
        """One page of a list with its headers. `link_size` is the page size for Link, which for the issue search differs from the
        requested one. Lists that are not `counted` have neither Link nor X-Total-Count.
        """
        page, size = self.window()
        shown = rows[(page - 1) * size : page * size]
        if not counted:
            return self.answer([render(row) for row in shown])
        headers = {"Access-Control-Expose-Headers": "X-Total-Count, Link", "X-Total-Count": str(len(rows))}
        if link := self._link(len(rows), page, link_size or size):
            headers["Link"] = link
        return self.answer([render(row) for row in shown], headers=headers)

    def _link(self, total: int, page: int, size: int) -> str:
        last = -(-total // size)
        targets = {"next": page + 1, "last": last} if page < last else {}
        if page > 1:
            targets |= {"first": 1, "prev": page - 1}
        given = parse_qs(self.request.query, keep_blank_values=True)
        links = []
        for name, to in targets.items():
            query = urlencode(sorted({**given, "page": [str(to)]}.items()), doseq=True)
            links.append(f'<{self.forge.url}{self.request.path}?{query}>; rel="{name}"')
        return ",".join(links)

    # Parameters

    def number(self, name: str) -> int:
        """An integer from the query; invalid ones count as 0, as in Gitea."""
        value = self.query.get(name, "")
        return int(value) if re.fullmatch(r"-?\d{1,9}", value) else 0

    def flag(self, name: str) -> bool:
        """A boolean from the query."""
        return self.query.get(name, "").lower() in ("1", "t", "true")

    def moment(self, name: str) -> datetime | None:
        """A time from the query, RFC 3339 only: an unencoded `+` has become a space and gets 422."""
        value = self.query.get(name, "").strip()
        if not value:
            return None
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value):
            raise self.error(422, f"cannot parse {value!r} as a time")
        # The database compares whole seconds.
        return datetime.fromisoformat(value).astimezone(UTC).replace(microsecond=0)

    def body(self) -> dict[str, Any]:
        """The JSON object in the body. Raises 422."""
        try:
            value = json.loads(self.request.body or b"{}")
        except ValueError:
            raise self.error(422, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise self.error(422, "the body is not an object")
        return value

    def text(self, name: str) -> str:
        """A required, non-empty string from the body. Raises 422."""
        value = self.body().get(name)
        if not isinstance(value, str) or not value:
            raise self.error(422, f"[{name.capitalize()}]: Required")
        return value

    # Objects in the path

    def signed_in(self) -> User:
        """The authenticated user. Raises 401 if there is none."""
        if self.user is None:
            raise self.error(401, "token is required")
        return self.user

    def person(self, name: str = "user") -> User:
        """The user or organisation in the path; raises 404, or a redirect for an old name."""
        login = self.names[name]
        try:
            return self.forge.user(login)
        except LookupError:
            if target := self.forge.tables.users.get(self.forge.redirect_of(login)):
                path = self.request.path.replace(f"/{quote(login)}", f"/{quote(target.login)}", 1)
                raise self.redirect(path) from None
            raise self.missing() from None

    def org(self) -> User:
        """The organisation in the path; raises 404 or a redirect."""
        org = self.person("org")
        if not org.is_org:
            raise self.missing()
        return org

    def repo(self, level: int = 1) -> Repo:
        """The repository in the path. Raises a redirect for an old name, 404 for a hidden one, 403 if the user may see it
        but lacks the level (2 write, 3 admin).
        """
        owner, name = self.names["owner"], self.names["repo"]
        try:
            repo = self.forge.repo(f"{owner}/{name}")
        except LookupError:
            raise self._moved(owner, name) from None
        held = self.forge.level(self.user, repo)
        if held < 1:
            raise self.missing()
        if held < level:
            need = "an owner or a collaborator with admin write" if level > 2 else "a collaborator with write"
            raise self.error(403, f"user should be {need} of a repository")
        return repo

    def _moved(self, owner: str, name: str) -> Refused:
        tables = self.forge.tables
        logins = {user.login.lower(): user for user in tables.users.values()}
        if owner.lower() not in logins:
            holder = tables.users.get(self.forge.redirect_of(owner))
            return self._to(owner, name, holder.login, name) if holder else self.missing()
        repo = tables.repos.get(self.forge.redirect_of(owner, name))
        return self._to(owner, name, repo.owner, repo.name) if repo else self.missing()

    def _to(self, owner: str, name: str, new_owner: str, new_name: str) -> Refused:
        old, new = f"/{quote(owner)}/{quote(name)}", f"/{quote(new_owner)}/{quote(new_name)}"
        return self.redirect(self.request.path.replace(old, new, 1))


Handler = Callable[[Call], Response]


@dataclass(frozen=True)
class Route:
    """A route: method, pattern with {names}, the scope a token needs, and whether authentication is required."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    scope: str
    signed_in: bool


ROUTES: list[Route] = []


def route(method: str, path: str, scope: str = "", *, signed_in: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler. `{name}` in the path matches one segment, `{name*}` the rest."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", path)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, re.compile(PREFIX + pattern + "/?"), handler, scope, signed_in))
        return handler

    return register


def credentials(request: Request) -> str | None:
    """The token in a request, or None. The query takes precedence over the header, where it may also be the password
    of basic auth, or the user name with an empty password.
    """
    query = request.parameters
    if secret := query.get("token") or query.get("access_token"):
        return secret
    kind, _, value = request.header("Authorization").partition(" ")
    if kind.lower() in ("token", "bearer"):
        return value.strip()
    if kind.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return (name if password in ("", "x-oauth-basic") else password) or None


def handle(forge: Forge, request: Request) -> Response:
    """Handle an API request, and record its user in it."""
    secret = credentials(request)
    with forge.lock:
        forge.settle()
        token = forge.token(secret) if secret is not None else None
        user = forge.tables.users[token.user_id] if token else None
        request.user = user.login if user else ""
        call = Call(forge, request, user, token, {})
        try:
            if secret is not None and token is None:
                raise call.error(401, "token is required")
            return _dispatch(call)
        except Refused as refused:
            return refused.response


def _dispatch(call: Call) -> Response:
    known_path = False
    for candidate in ROUTES:
        match = candidate.pattern.fullmatch(call.request.path)
        if not match:
            continue
        known_path = True
        if candidate.method != call.request.method:
            continue
        call.names = {name: unquote(value) for name, value in match.groupdict().items()}
        if candidate.signed_in:
            call.signed_in()
        _check_scope(call, candidate.scope)
        return candidate.handler(call)
    return Response(405) if known_path else no_route()


def no_route() -> Response:
    """The response for a path without a route: not JSON, unlike the 404 of a missing object."""
    return Response(404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"})


def _check_scope(call: Call, scope: str) -> None:
    if not scope or not call.token or not call.token.scopes or not call.forge.features.token_scopes:
        return
    reading = call.request.method in ("GET", "HEAD")
    enough = {f"write:{scope}", "all"} | ({f"read:{scope}"} if reading else set())
    if not enough & set(call.token.scopes):
        needed = f"{'read' if reading else 'write'}:{scope}"
        raise call.error(403, f"token does not have at least one of required scope(s): [{needed}]")
