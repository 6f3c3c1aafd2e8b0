"""What this Gitea or Forgejo can do, found by asking it. Nothing is written, and no version is believed by its name.

Each probe gives None where nothing is there yet to try it on, such as a comment; it is tried again later.
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
    NotFound,
    RateLimited,
    Rejected,
    Sample,
    Unavailable,
)

#: Asks the server: path and query in, answer out; raises ForgeError.
Ask = Callable[[str, dict[str, Any]], requests.Response]

#: An owner that there is nowhere.
NOBODY = "cc-ci-asks-for-nobody"


def probe(ask: Ask, sample: Sample) -> Iterator[Found]:
    """All of them, one after the other; one that fails hides no other. What concerns the whole forge (a limit on requests, a
    circuit that is open, a token that it does not know) is raised."""
    where = "/repos/" + "/".join(quote(part, safe="") for part in sample.repository) if sample.repository else ""
    yield from _alone("page_limit", lambda: _page_limit(ask))
    yield from _alone("owner_filter", lambda: _owner_filter(ask))
    yield from _alone("timeline", lambda: _timeline(ask, where, sample.pull))
    yield from _comments(ask, where, sample.pull)
    yield from _alone("org_hooks", lambda: _org_hooks(ask, sample.organisation))


def _alone(name: str, find: Callable[[], Found]) -> Iterator[Found]:
    """One of them, or why it is not known."""
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
        limit = ask("/settings/api", {}).json()["max_response_items"]
    except (NotFound, Forbidden, Rejected, ValueError, KeyError, TypeError) as error:
        return Found("page_limit", None, f"GET /settings/api: {_short(error)}")
    well = isinstance(limit, int) and limit > 0
    return Found("page_limit", limit if well else None, f"GET /settings/api: max_response_items is {limit!r}"[:200])


def _owner_filter(ask: Ask) -> Found:
    name = "owner_filter"
    query: dict[str, Any] = {"type": "pulls", "state": "all", "limit": 1}
    try:
        rows = _rows(ask("/repos/issues/search", {**query, "owner": NOBODY}))
    except (Rejected, NotFound) as error:
        return Found(name, True, f"an owner that does not exist is refused: {_short(error)}")
    except Forbidden as error:
        return Found(name, None, f"the search is refused: {_short(error)}")
    if rows:
        return Found(name, False, "an owner that does not exist is answered with everybody's pull requests")
    if _rows(ask("/repos/issues/search", query)):
        return Found(name, True, "an owner that does not exist has no pull requests, and others have")
    return Found(name, None, "there is no pull request yet to try it on")


def _timeline(ask: Ask, where: str, pull: int | None) -> Found:
    if not where or not pull:
        return Found("timeline", None, "there is no pull request yet to try it on")
    path = f"{where}/issues/{pull}/timeline"
    try:
        ask(path, {"limit": 1})
    except NotFound as error:
        try:
            ask(f"{where}/issues/{pull}", {})
        except ForgeError as gone:
            _pass_on(gone)
            return Found("timeline", None, f"the pull request itself cannot be read: {_short(gone)}")
        return Found("timeline", False, _short(error))
    except (Forbidden, Rejected) as error:
        return Found("timeline", None, _short(error))
    return Found("timeline", True, f"GET {path}: 200")


def _comments(ask: Ask, where: str, pull: int | None) -> Iterator[Found]:
    """How comment lists are cut into pages, what `since` means, and whether there are reactions."""
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
            yield Found(name, False, f"asked for one, {len(rows)} came")
        elif second and second[0].get("id") == rows[0].get("id"):
            yield Found(name, False, "the second page is the first once more")
        else:
            yield Found(name, True, "asked for one, one came, and the second page goes on")
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
        # All come with a limit, too: the comment is the oldest of those from its own time on.
        rows = _rows(ask(path, {"since": since.strftime("%Y-%m-%dT%H:%M:%SZ"), "limit": 50}))
        return any(row.get("id") == comment["id"] for row in rows)

    if not shows(updated - timedelta(seconds=1)):
        return Found("since_inclusive", None, "the comment does not show among those since the second before it")
    if shows(updated + timedelta(seconds=1)):
        return Found("since_inclusive", None, "`since` is ignored: an older comment shows")
    inclusive = shows(updated)
    return Found("since_inclusive", inclusive, f"a comment {'shows' if inclusive else 'does not show'} since its own second")


def _reactions(ask: Ask, path: str) -> Found:
    try:
        ask(path, {})
    except (NotFound, Forbidden, Rejected) as error:
        return Found("reactions", False if isinstance(error, NotFound) else None, _short(error))
    return Found("reactions", True, f"GET {path}: 200")


def _org_hooks(ask: Ask, organisation: str) -> Found:
    if not organisation:
        return Found("org_hooks", None, "no organisation is known yet to try it on")
    path = f"/orgs/{quote(organisation, safe='')}/hooks"
    try:
        ask(path, {"limit": 1})
    except Forbidden as error:
        return Found("org_hooks", True, f"there are some, for the organisation's owners: {_short(error)}")
    except (NotFound, Rejected) as error:
        return Found("org_hooks", None, f"{organisation} is no organisation, or has none: {_short(error)}")
    return Found("org_hooks", True, f"GET {path}: 200")


def _rows(response: requests.Response) -> list[Any]:
    try:
        rows = response.json()
    except ValueError:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _pass_on(error: ForgeError) -> None:
    """Raise what says nothing about an ability."""
    if isinstance(error, Unavailable | RateLimited):
        raise error


def _short(error: Exception) -> str:
    return str(error)[:200]
