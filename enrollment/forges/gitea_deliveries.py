"""What Gitea and Forgejo deliver to a webhook: `enrollment.forges.base.Deliveries` as a module.

Captured ones are in tests/data/gitea/deliveries; docs/webhooks.md says what cc-ci makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enrollment.forges.base import Garbage, Heard
from enrollment.forges.gitea import delivered_comment, delivered_repository

SIGNATURES = ("X-Gitea-Signature", "X-Forgejo-Signature", "X-Hub-Signature-256")
BRANDS = ("Gitea", "Forgejo", "GitHub")
#: The names under which comments come: all alike before Forgejo 13, where reviews have the finer one.
COMMENT_EVENTS = ("issue_comment", "pull_request_comment")
ACTIONS = ("created", "edited")


def signatures(headers: Mapping[str, str]) -> list[str]:
    return [value.removeprefix("sha256=") for name in SIGNATURES if (value := headers.get(name, ""))]


def event(headers: Mapping[str, str]) -> str:
    return _named(headers, "Event")


def delivery_id(headers: Mapping[str, str]) -> str:
    return _named(headers, "Delivery")


def _named(headers: Mapping[str, str], what: str) -> str:
    return next((value for brand in BRANDS if (value := headers.get(f"X-{brand}-{what}", ""))), "")


def hear(event: str, data: dict[str, Any]) -> Heard:
    repo_id, repo_name = delivered_repository(data)
    action = data.get("action")
    action = action if isinstance(action, str) else ""

    def unwanted(why: str) -> Heard:
        return Heard(repo_id, repo_name, action, why)

    if event not in COMMENT_EVENTS:
        return unwanted(f"the event is {event or 'not named'}, not a comment")
    if action not in ACTIONS:
        return unwanted(f"a comment that is {action[:30] or 'of no known action'}")
    if not isinstance(data.get("comment"), dict):
        return unwanted("there is no comment in it")
    issue = data.get("issue")
    if not isinstance(issue, dict):
        raise Garbage("a comment on nothing")
    if not data.get("is_pull", issue.get("pull_request") is not None):
        return unwanted("a comment on an issue that is no pull request")
    comment, number = delivered_comment(data), issue.get("number")
    doubts = ""
    if comment.pull_number is None or number != comment.pull_number or issue.get("pull_request") is None:
        doubts = "what it says of the pull request does not fit together"
    title, url = issue.get("title"), issue.get("html_url")
    return Heard(
        repo_id,
        repo_name,
        action,
        number=number if isinstance(number, int) and not isinstance(number, bool) else None,
        comment=comment,
        doubts=doubts,
        title=title if isinstance(title, str) else "",
        html_url=url if isinstance(url, str) else "",
    )
