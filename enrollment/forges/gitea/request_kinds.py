"""What a request to Gitea's API is for, by its method and path."""

from __future__ import annotations

import re

from enrollment.forges.base import Ask

#: The first match counts. Paths of a repository begin after its name.
KINDS = (
    ("*", r"/hooks", "hooks"),
    ("POST PATCH DELETE", r"/reactions$", "react"),
    ("POST PATCH DELETE", r"/comments", "comment"),
    ("POST PATCH", r"/issues(/\d+)?$", "issue"),
    ("POST", r"/statuses/", "status"),
    ("POST PUT PATCH DELETE", r"", "push"),
    ("GET", r"^/repos/(issues/)?search$", "search"),
    ("GET", r"/comments$|/reviews$", "read comments"),
    ("GET", r"/pulls/|/timeline$", "read pull"),
    ("GET", r"^/(user|users|orgs|teams)(/|$)|/collaborators/", "people"),
    ("GET", r"", "read"),
)


def ask_of(method: str, path: str) -> Ask:
    """The kind of a request, for the table of requests and the shares of the budget."""
    kind = next(
        kind
        for methods, pattern, kind in KINDS
        if methods in ("*", method) or method in methods.split()
        if re.search(pattern, path)
    )
    match = re.match(r"/repos/([^/]+)/([^/]+)/?", path)
    repository = f"{match[1]}/{match[2]}".lower() if match and kind != "search" else ""
    return Ask(kind, repository)
