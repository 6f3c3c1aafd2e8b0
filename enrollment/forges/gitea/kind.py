"""Gitea and Forgejo, as one object."""

from __future__ import annotations

import re

from enrollment.forges.base import Event, ForgeKind, Pages, SignIn
from enrollment.forges.gitea import payloads
from enrollment.forges.gitea.client import API, GiteaClient

#: The responses of a locked conversation: to a comment, and to a reaction.
_LOCKED = re.compile(r"\blocked\b|no permission to change reaction", re.IGNORECASE)
#: What a refusal lists, such as [read:user].
_BRACKETS = re.compile(r"\[([^]]*)")


def _lacked_scopes(refusal: str) -> frozenset[str]:
    listed = _BRACKETS.findall(refusal.partition("scope")[2])
    return frozenset(scope for text in listed for scope in re.split(r"[\s,]+", text) if ":" in scope)


GITEA = ForgeKind(
    name="gitea",
    label="Gitea or Forgejo",
    client=GiteaClient,
    pull_ref="refs/pull/{number}/head",
    api=API,
    pages=Pages(
        version="{forge}" + API + "/version",
        tokens="{forge}/user/settings/applications",
        teams="{forge}/org/{owner}/teams",
        collaborators="{repository}/settings/collaboration",
        hooks="{repository}/settings/hooks",
        pulls="{repository}/pulls",
        commit="{repository}/commit/{sha}",
        compare="{repository}/compare/{before}...{sha}",
    ),
    deliveries=payloads,
    # Older servers ignore scopes, and give a token that may do all that its owner may.
    sign_in=SignIn("/login/oauth/authorize", "/login/oauth/access_token", "read:user read:repository"),
    events=(
        # A hook for the first alone never reports comments on pull requests: those are the second.
        Event("issue_comment", "Issue Comment"),
        Event("pull_request_comment", "Pull Request Comment"),
        # All reviews; before Gitea 1.24 they are listed by outcome.
        Event(
            "pull_request_review",
            "Pull Request Reviewed",
            frozenset({"pull_request_review_approved", "pull_request_review_rejected"}),
        ),
    ),
    hook_steps=(
        "Open {hooks} (<em>Settings → Webhooks</em>; needs the admin permission) and choose <em>Add webhook → "
        "Gitea</em>, or <em>Forgejo</em>.",
        'Target URL: <code class="command">{url}</code>',
        "HTTP method <strong>POST</strong>, content type <strong>application/json</strong>, and the secret.",
        "Trigger on <em>Custom events</em>: {events}, nothing else. The branch filter stays <code>*</code>.",
        "Leave <em>Active</em> checked and add the webhook. The first comment that comes through it makes it "
        "<em>verified</em>; the button <em>Test delivery</em> sends another event, which proves nothing.",
    ),
    scopes={
        "read": "read:repository, read:issue",
        "comment": "write:issue",
        "react": "write:issue",
        "status": "write:repository",
        "membership": "read:organization",
        "hooks": "write:repository",
        "org_hooks": "write:organization",
        "push": "write:repository",
        "admin": "write:repository",
        "site_admin": "write:admin",
        "people": "read:user",
    },
    lacked_scopes=_lacked_scopes,
    is_locked=lambda refusal: _LOCKED.search(refusal) is not None,
)
