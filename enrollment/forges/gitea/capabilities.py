"""What this Gitea or Forgejo can do, found by asking it. Nothing is written, and no version name is trusted.

Each probe returns None if there is nothing to try it on yet, such as a comment; it is retried later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import requests

from enrollment.forges.base import (
    HALTS,
    Forbidden,
    ForgeError,
    Found,
    Garbage,
    NoRoute,
    NotFound,
    RateLimited,
    Rejected,
    Sample,
    Unavailable,
)
from enrollment.forges.http import json_of

#: Asks the server: takes path and query, returns the response; raises ForgeError.
Ask = Callable[[str, dict[str, Any]], requests.Response]

#: An owner that does not exist anywhere.
NOBODY = "cc-ci-asks-for-nobody"


def probe(ask: Ask, sample: Sample) -> Iterator[Found]:
    """Run all probes; one that fails does not stop the others. Raises what concerns the whole forge (a rate limit, an open
    circuit, a rejected token).
    """
    where = "/repos/" + "/".join(quote(part, safe="") for part in sample.repository) if sample.repository else ""
    yield from _alone("page_limit", lambda: _page_limit(ask))
    yield from _alone("owner_filter", lambda: _owner_filter(ask))
    yield from _alone("timeline", lambda: _timeline(ask, where, sample.pull))
    yield from _comments(ask, where, sample.pull)
    yield from _alone("org_hooks", lambda: _org_hooks(ask, sample.organisation))


def _alone(name: str, find: Callable[[], Found]) -> Iterator[Found]:
    """The result of one probe, or why it is unknown."""
    try:
        yield find()
    except HALTS:
        raise
    except ForgeError as error:
        yield _unsaid(name, error)


def _unsaid(name: str, error: ForgeError) -> Found:
    if isinstance(error, NotFound | Forbidden | Rejected):
        return Found(name, None, _short(error))
    return Found(name, None, f"no answer: {_short(error)}", failed=True)


def _page_limit(ask: Ask) -> Found:
    try:
        limit = _object(ask("/settings/api", {})).get("max_response_items")
    except (NotFound, Forbidden, Rejected) as error:
        return Found("page_limit", None, f"GET /settings/api: {_short(error)}")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
        raise Garbage(f"GET /settings/api: max_response_items is {limit!r}"[:200])
    return Found("page_limit", limit, f"GET /settings/api: max_response_items is {limit}")


def _owner_filter(ask: Ask) -> Found:
    name = "owner_filter"
    query: dict[str, Any] = {"type": "pulls", "state": "all", "limit": 1}
    try:
        rows = _rows(ask("/repos/issues/search", {**query, "owner": NOBODY}))
    except (Rejected, NotFound) as error:
        if error.status not in (400, 404):
            return Found(name, None, f"the search is refused: {_short(error)}")
        return Found(name, True, f"an owner that does not exist is refused: {_short(error)}")
    except Forbidden as error:
        return Found(name, None, f"the search is refused: {_short(error)}")
    if rows:
        return Found(name, False, "an owner that does not exist yields everybody's pull requests")
    if _rows(ask("/repos/issues/search", query)):
        return Found(name, True, "an owner that does not exist has no pull requests, and others do")
    return Found(name, None, "there is no pull request yet to try it on")


def _timeline(ask: Ask, where: str, pull: int | None) -> Found:
    if not where or not pull:
        return Found("timeline", None, "there is no pull request yet to try it on")
    path = f"{where}/issues/{pull}/timeline"
    try:
        _rows(ask(path, {"limit": 1}))
    except (NotFound, NoRoute) as error:
        try:
            _object(ask(f"{where}/issues/{pull}", {}))
        except ForgeError as gone:
            _pass_on(gone)
            return Found("timeline", None, f"the pull request itself cannot be read: {_short(gone)}")
        return Found("timeline", False, _short(error))
    except (Forbidden, Rejected) as error:
        return Found("timeline", None, _short(error))
    return Found("timeline", True, f"GET {path}: 200")


def _comments(ask: Ask, where: str, pull: int | None) -> Iterator[Found]:
    """How comment lists are paginated, what `since` means, and whether reactions exist."""
    nothing = "there is no comment yet to try it on"
    comment: Any = None
    for name, path in (
        ("repository_comments_paged", f"{where}/issues/comments"),
        ("pull_comments_paged", f"{where}/issues/{pull}/comments"),
    ):
        try:
            rows = _rows(ask(path, {"limit": 1, "page": 1})) if where and pull else []
            if not rows:
                yield Found(name, None, nothing)
                continue
            comment = comment or rows[0]
            second = _rows(ask(path, {"limit": 1, "page": 2})) if len(rows) == 1 else rows
        except HALTS:
            raise
        except ForgeError as error:
            yield _unsaid(name, error)
            continue
        if len(rows) > 1:
            yield Found(name, False, f"asked for one row, got {len(rows)}")
        elif second and second[0].get("id") == rows[0].get("id"):
            yield Found(name, False, "the second page repeats the first")
        else:
            yield Found(name, True, "asked for one row, got one, and the second page continues")
    try:
        updated = datetime.fromisoformat(str(comment["updated_at"]).replace("Z", "+00:00")) if comment else None
    except (KeyError, TypeError, ValueError):
        updated = None
    if updated is None:
        yield Found("since_inclusive", None, nothing)
        yield Found("reactions", None, nothing)
        return
    listing, number, at = f"{where}/issues/comments", comment["id"], updated
    yield from _alone("since_inclusive", lambda: _since(ask, listing, comment, at))
    yield from _alone("reactions", lambda: _reactions(ask, f"{listing}/{number}/reactions"))


def _since(ask: Ask, path: str, comment: Any, updated: datetime) -> Found:
    def shows(since: datetime) -> bool:
        # The limit does no harm: the comment is the oldest since its own time.
        rows = _rows(ask(path, {"since": since.strftime("%Y-%m-%dT%H:%M:%SZ"), "limit": 50}))
        return any(row.get("id") == comment["id"] for row in rows)

    if not shows(updated - timedelta(seconds=1)):
        return Found("since_inclusive", None, "the comment is missing from those since the second before it")
    if shows(updated + timedelta(seconds=1)):
        return Found("since_inclusive", None, "`since` is ignored: an older comment shows")
    inclusive = shows(updated)
    return Found("since_inclusive", inclusive, f"a comment {'shows' if inclusive else 'does not show'} since its own second")


def _reactions(ask: Ask, path: str) -> Found:
    try:
        _rows(ask(path, {}))
    except (NotFound, Forbidden, Rejected) as error:
        return Found("reactions", False if isinstance(error, NotFound) else None, _short(error))
    return Found("reactions", True, f"GET {path}: 200")


def _org_hooks(ask: Ask, organisation: str) -> Found:
    if not organisation:
        return Found("org_hooks", None, "no organisation is known yet to try it on")
    path = f"/orgs/{quote(organisation, safe='')}/hooks"
    try:
        _rows(ask(path, {"limit": 1}))
    except Forbidden as error:
        return Found("org_hooks", True, f"there are some, for the organisation's owners: {_short(error)}")
    except (NotFound, Rejected) as error:
        return Found("org_hooks", None, f"{organisation} is not an organisation, or has none: {_short(error)}")
    return Found("org_hooks", True, f"GET {path}: 200")


def _rows(response: requests.Response) -> list[Any]:
    """A list of objects; null counts as an empty one. Raises Garbage."""
    rows = json_of(response)
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Garbage(f"{response.url}: expected a list"[:200])
    return rows


def _object(response: requests.Response) -> dict[str, Any]:
    data = json_of(response)
    if not isinstance(data, dict):
        raise Garbage(f"{response.url}: expected an object"[:200])
    return data


def _pass_on(error: ForgeError) -> None:
    """Raise errors that say nothing about a capability."""
    if isinstance(error, Unavailable | RateLimited | Garbage):
        raise error


def _short(error: Exception) -> str:
    return str(error)[:200]
