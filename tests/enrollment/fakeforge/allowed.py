"""What Gitea's API takes, for the routes that cc-ci may use, after the API description of Gitea 1.15 to 1.22 and Forgejo 13.

`check` says what is wrong with a request. Tests hold every request that our client made against it, so that a client
and a fake forge that agree on an invention of ours are both found out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qsl

PAGED = frozenset({"page", "limit"})
# A token may come in the query of any request, though a client should use the header.
ANYWHERE = frozenset({"token", "access_token", "sudo"})
WORDS = frozenset({"content_type", "url", "secret", "http_method"})


@dataclass(frozen=True)
class Call:
    """One operation: the parameters of its query, and the fields of its JSON body by the type they must have."""

    method: str
    path: str
    query: frozenset[str] = frozenset()
    body: tuple[tuple[str, type], ...] | None = None
    required: tuple[str, ...] = ()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern = re.sub(r"\{(\w+)\*\}", ".+", self.path)
        pattern = re.sub(r"\{(id|index)\}", r"\\d+", pattern)
        return re.compile(re.sub(r"\{\w+\}", "[^/]+", pattern))

    def matches(self, path: str) -> bool:
        """Whether a path, without /api/v1, is one of this operation."""
        return self._pattern.fullmatch(path) is not None


REPO = "/repos/{owner}/{repo}"
COMMENT = REPO + "/issues/comments/{id}"
ISSUE = REPO + "/issues/{index}"
SINCE = frozenset({"since"}) | PAGED
TEXT = (("body", str), ("updated_at", str))
REACTION = (("content", str),)
NEW_ISSUE = (("title", str), ("body", str), ("ref", str), ("closed", bool), ("assignees", list), ("labels", list))
EDIT_ISSUE = (("title", str), ("body", str), ("ref", str), ("state", str))
FILE = (*((name, str) for name in ("branch", "new_branch", "content", "message", "sha", "from_path")), ("signoff", bool))
PULL = tuple((name, str) for name in ("head", "base", "title", "body", "assignee", "due_date"))
STATUS = (("state", str), ("target_url", str), ("description", str), ("context", str))
HOOK = (
    ("type", str),
    ("active", bool),
    ("events", list),
    ("branch_filter", str),
    ("config", dict),
    ("authorization_header", str),
    ("name", str),
)
FILTERS = (
    frozenset({"state", "labels", "milestones", "priority_repo_id", "type", "assigned", "mentioned"})
    | frozenset({"review_requested", "reviewed", "owner", "team", "since"})
    | PAGED
)
REPOSITORIES = (
    frozenset({"q", "topic", "includeDesc", "priority_owner_id", "team_id", "starredBy", "private", "is_private"})
    | frozenset({"template", "archived", "mode"})
    | PAGED
)
ISSUES = frozenset({"state", "labels", "type", "milestones", "created_by", "assigned_by", "mentioned_by", "since"})

CALLS = (
    Call("GET", "/version"),
    Call("GET", "/settings/api"),
    Call("GET", "/user"),
    Call("GET", "/users/{user}"),
    Call("GET", "/orgs/{org}/members/{user}"),
    Call("GET", "/orgs/{org}/public_members/{user}"),
    Call("GET", "/orgs/{org}/teams", PAGED),
    Call("GET", "/teams/{id}"),
    Call("GET", "/teams/{id}/members/{user}"),
    Call("GET", "/orgs/{org}/hooks", PAGED),
    Call("POST", "/orgs/{org}/hooks", body=HOOK, required=("type", "config")),
    Call("PATCH", "/orgs/{org}/hooks/{id}", body=HOOK),
    Call("DELETE", "/orgs/{org}/hooks/{id}"),
    Call("GET", "/repos/search", REPOSITORIES),
    Call("GET", "/repos/issues/search", FILTERS),
    Call("GET", "/repositories/{id}"),
    Call("GET", REPO),
    Call("GET", REPO + "/branches/{branch*}"),
    Call("GET", REPO + "/tags", PAGED),
    Call("GET", REPO + "/contents", frozenset({"ref"})),
    Call("GET", REPO + "/contents/{path*}", frozenset({"ref"})),
    Call("PUT", REPO + "/contents/{path*}", body=FILE, required=("content", "sha")),
    Call("POST", REPO + "/statuses/{sha}", body=STATUS, required=("state",)),
    Call("GET", REPO + "/pulls", frozenset({"state", "sort", "milestone", "labels", "poster"}) | PAGED),
    Call("POST", REPO + "/pulls", body=PULL, required=("head", "base", "title")),
    Call("GET", REPO + "/pulls/{index}"),
    Call("GET", REPO + "/pulls/{index}/commits", PAGED | {"verification", "files"}),
    Call("GET", REPO + "/pulls/{index}/reviews", PAGED | {"verification", "files"}),
    Call("GET", REPO + "/issues", ISSUES | PAGED),
    Call("POST", REPO + "/issues", body=NEW_ISSUE, required=("title",)),
    Call("GET", ISSUE),
    Call("PATCH", ISSUE, body=EDIT_ISSUE),
    Call("GET", ISSUE + "/comments", SINCE),
    Call("POST", ISSUE + "/comments", body=TEXT, required=("body",)),
    Call("GET", ISSUE + "/timeline", SINCE),
    Call("GET", REPO + "/issues/comments", SINCE),
    Call("PATCH", COMMENT, body=TEXT, required=("body",)),
    Call("DELETE", COMMENT),
    Call("GET", COMMENT + "/reactions"),
    Call("POST", COMMENT + "/reactions", body=REACTION, required=("content",)),
    Call("GET", REPO + "/collaborators/{user}"),
    Call("GET", REPO + "/collaborators/{user}/permission"),
    Call("GET", REPO + "/hooks", PAGED),
    Call("POST", REPO + "/hooks", body=HOOK, required=("type", "config")),
    Call("PATCH", REPO + "/hooks/{id}", body=HOOK),
    Call("DELETE", REPO + "/hooks/{id}"),
)

VALUES = {
    "type": r"issues|pulls",
    "state": r"open|closed|all",
    "page": r"[1-9]\d*",
    "limit": r"[1-9]\d*",
    "topic": r"(?i:true|false)|[01tTfF]",  # what Go reads as a yes or no
    "private": r"(?i:true|false)|[01tTfF]",
    "is_private": r"(?i:true|false)|[01tTfF]",
    "since": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
}
COMMIT_STATES = ("pending", "success", "error", "failure", "warning")


def check(method: str, path: str, query: str = "", body: bytes | str = b"") -> str | None:
    """What Gitea's API does not know about a request, or None. The path begins with /api/v1; what is not of the API,
    such as git's own requests, is not judged."""
    if not path.startswith("/api/v1/"):
        return None
    where = f"{method} {path}"
    named = [call for call in CALLS if call.matches(path.removeprefix("/api/v1"))]
    # `/issues/comments` also looks like a `{name}`, so the method decides among those that match.
    call = next((call for call in named if call.method == method), None)
    if call is None:
        return f"{where}: no such operation" if not named else f"{where}: the path takes {named[0].method}"
    return _query(where, call, query) or _body(where, call, body)


def _query(where: str, call: Call, query: str) -> str | None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in call.query | ANYWHERE:
            return f"{where}: no parameter {name!r}"
        pattern = VALUES.get(name)
        if pattern and not re.fullmatch(pattern, value):
            return f"{where}: {name}={value!r} is not of the form {pattern}"
    return None


def _body(where: str, call: Call, body: bytes | str) -> str | None:
    if call.body is None:
        return f"{where}: takes no body" if body and json.loads(body) else None
    try:
        sent = json.loads(body or "null")
    except ValueError:
        return f"{where}: the body is not JSON"
    if not isinstance(sent, dict):
        return f"{where}: the body is not an object"
    fields = dict(call.body)
    for name, value in sent.items():
        if name not in fields:
            return f"{where}: no field {name!r}"
        if not isinstance(value, fields[name]):
            return f"{where}: {name} is {value!r}, not {fields[name].__name__}"
    if call.body is STATUS and sent.get("state") not in COMMIT_STATES:
        return f"{where}: no such state {sent.get('state')!r}"
    if isinstance(config := sent.get("config"), dict) and not config.keys() <= WORDS:
        return f"{where}: no such configuration {sorted(config.keys() - WORDS)}"
    missing = [name for name in call.required if not sent.get(name)]
    return f"{where}: without {', '.join(missing)}" if missing else None
