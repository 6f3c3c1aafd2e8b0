"""What Gitea and Forgejo deliver to a webhook: `enrollment.forges.base.Deliveries` as a module.

Captured deliveries are in tests/data/gitea/deliveries; docs/webhooks.md says what cc-ci does with them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from enrollment.forges.base import Garbage, Heard
from enrollment.forges.gitea.client import delivered_comment, delivered_repository

SIGNATURES = ("X-Gitea-Signature", "X-Forgejo-Signature", "X-Hub-Signature-256")
BRANDS = ("Gitea", "Forgejo", "GitHub")
#: Event names of comments: all the same before Forgejo 13, where reviews have their own.
COMMENT_EVENTS = ("issue_comment", "pull_request_comment")
ACTIONS = ("created", "edited")
#: The event's name for a review's body: Gitea 1.15 calls it a comment, others add the verdict.
REVIEWED = "reviewed"


def signatures(headers: Mapping[str, str]) -> list[str]:
    return [value.removeprefix("sha256=") for name in SIGNATURES if (value := headers.get(name, ""))]


def sign(secret: bytes, body: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


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

    if action == REVIEWED and isinstance(data.get("review"), dict):
        text = data["review"].get("content")
        if not isinstance(text, str):
            raise Garbage("a review without a text")
        return replace(_of_pull(repo_id, repo_name, action, data), review=text)
    if event == "pull_request" and action == "closed":
        return replace(_of_pull(repo_id, repo_name, action, data), closed=True)
    if event not in COMMENT_EVENTS:
        return unwanted(f"the event is {event or 'unnamed'}, not a comment")
    if action not in ACTIONS:
        return unwanted(f"the comment was {action[:30] or 'changed in an unknown way'}")
    if not isinstance(data.get("comment"), dict):
        return unwanted("it contains no comment")
    issue = data.get("issue")
    if not isinstance(issue, dict):
        raise Garbage("a comment on neither an issue nor a pull request")
    if not data.get("is_pull", issue.get("pull_request") is not None):
        return unwanted("a comment on an issue that is not a pull request")
    comment, number = delivered_comment(data), issue.get("number")
    doubts = ""
    if comment.pull_number is None or number != comment.pull_number or issue.get("pull_request") is None:
        doubts = "its data about the pull request is inconsistent"
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


def _of_pull(repo_id: int, repo_name: str, action: str, data: dict[str, Any]) -> Heard:
    """A delivery about a pull request as a whole. Raises Garbage."""
    number, pull = data.get("number"), data.get("pull_request")
    if not isinstance(pull, dict) or not isinstance(number, int) or isinstance(number, bool) or pull.get("number") != number:
        raise Garbage("it is not about a pull request")
    title, url = (text if isinstance(text := pull.get(key), str) else "" for key in ("title", "html_url"))
    return Heard(repo_id, repo_name, action, number=number, title=title, html_url=url)
