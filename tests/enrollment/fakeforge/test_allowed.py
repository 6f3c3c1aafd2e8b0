"""The table of what Gitea's API takes, held against an independent client's knowledge of it."""

from __future__ import annotations

import re
from pathlib import Path

import gitea_api
import pytest

from enrollment.fakeforge import routes_hooks, routes_issues, routes_people, routes_repo
from enrollment.fakeforge.api import ROUTES
from tests.enrollment.fakeforge.allowed import ANYWHERE, CALLS, Call, check

ROUTE_MODULES = (routes_hooks, routes_issues, routes_people, routes_repo)
SHA = "a" * 40


@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        ("GET", "/version", "", b""),
        ("GET", "/repos/issues/search", "type=pulls&state=open&owner=o&since=2026-01-01T00%3A00%3A00Z&limit=50", b""),
        ("GET", "/repos/o/r/pulls/1", "", b""),
        ("POST", "/repos/o/r/issues/1/comments", "", b'{"body": "x"}'),
        ("PATCH", "/repos/o/r/issues/comments/7", "", b'{"body": "x"}'),
        ("POST", f"/repos/o/r/statuses/{SHA}", "", b'{"state": "success", "context": "ci"}'),
        ("GET", "/repos/o/r/contents/tests/a%20b.py", "ref=main", b""),
    ],
)
def test_what_the_api_takes(method: str, path: str, query: str, body: bytes) -> None:
    assert check(method, "/api/v1" + path, query, body) is None


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "complaint"),
    [
        ("GET", "/repos/o/r/pull/1", "", b"", "no such operation"),
        ("GET", "/repos/o/r/pulls/one", "", b"", "no such operation"),
        ("PUT", "/repos/o/r/issues/1/comments", "", b"{}", "the path takes GET"),
        ("GET", "/repos/issues/search", "organisation=o", b"", "no parameter 'organisation'"),
        ("GET", "/repos/issues/search", "since=2026-01-01", b"", "is not of the form"),
        ("GET", "/repos/issues/search", "page=0", b"", "is not of the form"),
        ("GET", "/repos/o/r/issues/comments", "sort=created", b"", "no parameter 'sort'"),
        ("POST", "/repos/o/r/issues/1/comments", "", b'{"text": "x"}', "no field 'text'"),
        ("POST", "/repos/o/r/issues/1/comments", "", b'{"body": ""}', "without body"),
        ("POST", "/repos/o/r/issues/1/comments", "", b"body=x", "not JSON"),
        ("POST", f"/repos/o/r/statuses/{SHA}", "", b'{"state": "passed"}', "no such state"),
        ("POST", "/repos/o/r/hooks", "", b'{"type": "gitea", "config": {"uri": "x"}}', "no such configuration"),
        ("DELETE", "/repos/o/r/issues/comments/7", "", b'{"body": "x"}', "takes no body"),
    ],
)
def test_what_it_does_not_take(method: str, path: str, query: str, body: bytes, complaint: str) -> None:
    assert complaint in (check(method, "/api/v1" + path, query, body) or "")


def test_git_is_not_judged() -> None:
    assert check("GET", "/recipes/web.git/info/refs", "service=git-upload-pack") is None


def test_every_route_of_the_sandbox_is_in_the_table() -> None:
    known = {(call.method, re.sub(r"\{\w+\*?\}", "{}", call.path)) for call in CALLS}
    routes = {(route.method, re.sub(r"\(\?P<\w+>[^)]+\)", "{}", route.pattern.pattern)[len("/api/v1") : -2]) for route in ROUTES}
    assert routes - known == set()


# Operations and parameters that came after the independent client's version, 1.15.
NEWER = {"/repos/{owner}/{repo}/issues/{index}/timeline", "/repos/{owner}/{repo}/collaborators/{user}/permission"}
NEWER_PARAMETERS = {"owner", "team", "reviewed", "poster", "verification", "files", "ref"} | {"page", "limit"}


def known_to_the_client() -> dict[tuple[str, str], set[str]]:
    """Each operation of the generated client with its parameters, read from its source."""
    found: dict[tuple[str, str], set[str]] = {}
    form = re.compile(r"all_params = \[(.*?)\].*?call_api\(\s*'([^']+)', '(\w+)'", re.DOTALL)
    for module in (Path(gitea_api.__file__).parent / "api").glob("*_api.py"):
        for parameters, path, method in form.findall(module.read_text()):
            names = {_camel(name) for name in re.findall(r"'(\w+)'", parameters)}
            found[method, re.sub(r"\{\w+\}", "{}", path).rstrip("/")] = names
    return found


def _camel(name: str) -> str:
    return {"include_desc": "includeDesc", "starred_by": "starredBy"}.get(name, name)


@pytest.mark.parametrize(
    "call", [call for call in CALLS if call.path not in NEWER], ids=lambda call: f"{call.method} {call.path}"
)
def test_the_table_agrees_with_an_independent_client(call: Call) -> None:
    operation = call.method, re.sub(r"\{\w+\*?\}", "{}", call.path)
    known = known_to_the_client()
    assert operation in known
    assert call.query - known[operation] - NEWER_PARAMETERS - ANYWHERE == set()
    assert (call.body is not None) <= bool(known[operation] & {"body", "content"})
