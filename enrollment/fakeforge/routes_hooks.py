"""Routes for webhooks of repositories and organisations."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from enrollment.fakeforge.api import Call, route
from enrollment.fakeforge.faults import Response
from enrollment.fakeforge.model import Hook
from enrollment.fakeforge.routes_issues import ONE_REPO

ONE_ORG = "/orgs/{org}"

# How an event's name is read back by versions that expand all; names missing here vanish.
READ_BACK = {
    "pull_request_review": ("pull_request_review_approved", "pull_request_review_rejected"),
    "pull_request_comment": ("pull_request_comment", "pull_request_review_comment"),
    "pull_request": (
        "pull_request",
        "pull_request_assign",
        "pull_request_label",
        "pull_request_milestone",
        "pull_request_comment",
        "pull_request_review_approved",
        "pull_request_review_rejected",
        "pull_request_review_comment",
        "pull_request_sync",
    ),
}
PLAIN = ("create", "delete", "push", "issues", "issue_comment", "release", "repository", "fork")
ORDER = ("create", "delete", "fork", "push", "issues", "issue_comment", *READ_BACK["pull_request"], "repository", "release")


# And by the others.
WRITTEN = {
    "pull_request": (
        *("pull_request", "pull_request_assign", "pull_request_label", "pull_request_milestone", "pull_request_comment"),
        *("pull_request_review", "pull_request_sync", "pull_request_review_request"),
    ),
    "pull_request_comment": ("pull_request_comment",),
    "pull_request_review": ("pull_request_review",),
}


def read_back(given: list[Any], expanded: bool = True) -> list[str]:
    """The list of events as it is read back after being written."""
    table: dict[str, tuple[str, ...]] = READ_BACK if expanded else WRITTEN
    names = {name for event in given for name in table.get(event, (event,) if event in PLAIN else ())}
    return [name for name in (*ORDER, "pull_request_review", "pull_request_review_request") if name in names]


@route("GET", ONE_REPO + "/hooks", "repository", signed_in=True)
@route("GET", ONE_ORG + "/hooks", "organization", signed_in=True)
def hooks(call: Call) -> Response:
    """The hooks; only for admins of the repository or owners of the organisation."""
    place = _place(call)
    rows = [row for row in call.forge.tables.hooks.values() if (row.repo_id, row.org_id) == place]
    return call.page(rows, call.render.hook, counted=call.forge.features.all_lists_counted)


@route("POST", ONE_REPO + "/hooks", "repository", signed_in=True)
@route("POST", ONE_ORG + "/hooks", "organization", signed_in=True)
def add_hook(call: Call) -> Response:
    """Create a hook. A second one with the same URL is allowed."""
    (repo_id, org_id), body = _place(call), call.body()
    config = body.get("config")
    if not isinstance(config, dict) or not {"url", "content_type"} <= config.keys():
        raise call.error(422, "Missing config option: url or content_type")
    if call.forge.features.bad_hook_url_refused and urlsplit(str(config["url"])).scheme not in ("http", "https"):
        raise call.error(422, "Invalid url")
    with call.forge.changing() as tables:
        now = call.forge.now()
        hook = Hook(
            id=tables.next_id("hooks"),
            repo_id=repo_id,
            org_id=org_id,
            kind=call.text("type"),
            url=str(config["url"]),
            content_type=str(config["content_type"]),
            secret=str(config.get("secret", "")),
            events=read_back(body.get("events") or ["push"], call.forge.features.hook_events_expanded),
            active=bool(body.get("active")),
            created=now,
            updated=now,
        )
        tables.hooks[hook.id] = hook
    return call.answer(call.render.hook(hook), 201)


@route("PATCH", ONE_REPO + "/hooks/{id}", "repository", signed_in=True)
@route("PATCH", ONE_ORG + "/hooks/{id}", "organization", signed_in=True)
def edit_hook(call: Call) -> Response:
    """Change a hook. Does not merge: events that are not named are lost, whatever else changes. The secret stays the first
    one, whatever is sent.
    """
    hook, body = _hook(call), call.body()
    with call.forge.changing():
        config = body.get("config") or {}
        hook.url = config.get("url", hook.url)
        hook.content_type = config.get("content_type", hook.content_type)
        # Part of an earlier event's expansion survives, so the list is then longer than `push`.
        expanded = call.forge.features.hook_events_expanded
        left = [name for name in hook.events if name.startswith("pull_request_") and expanded]
        hook.events = read_back(body["events"], expanded) if body.get("events") else ["push", *left]
        hook.active = body.get("active", hook.active)
        hook.updated = call.forge.now()
    return call.answer(call.render.hook(hook))


@route("DELETE", ONE_REPO + "/hooks/{id}", "repository", signed_in=True)
@route("DELETE", ONE_ORG + "/hooks/{id}", "organization", signed_in=True)
def delete_hook(call: Call) -> Response:
    """Remove a hook."""
    hook = _hook(call)
    with call.forge.changing() as tables:
        del tables.hooks[hook.id]
    return Response(204)


def _place(call: Call) -> tuple[int, int]:
    """The ids of the hooks' repository and organisation, one of them 0. Raises 403 and 404."""
    if "repo" in call.names:
        return call.repo(level=3).id, 0
    org, asker = call.org(), call.signed_in()
    member = call.forge.membership(org, asker)
    if not asker.is_admin and (member is None or member.permission != "owner"):
        raise call.error(403, "Must be an organization owner")
    return 0, org.id


def _hook(call: Call) -> Hook:
    place = _place(call)
    hook = call.forge.tables.hooks.get(int(call.names["id"])) if call.names["id"].isdigit() else None
    if hook is None or (hook.repo_id, hook.org_id) != place:
        raise call.missing()
    return hook
