"""Differences between the versions of Gitea and Forgejo that the fake forge imitates, in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Features:
    """The behaviour of one version; the comments explain the other value."""

    owner_filter: bool  # issues/search honours `owner` and answers 400 for an unknown one; else it ignores it silently
    comments_paged: Literal["none", "repo", "both"]  # which comment lists obey page and limit
    comments_counted: bool  # both comment lists carry X-Total-Count
    all_lists_counted: bool  # else the lists of tags and hooks carry no X-Total-Count
    timeline: bool  # issues/{n}/timeline exists
    readers_set_status: bool  # a commit status needs no write permission
    collaborators_for_readers: bool  # else those routes answer 404 to all but admins of the repository
    permission_route: bool  # collaborators/{x}/permission exists
    token_scopes: bool  # tokens carry scopes
    redirect_status: int  # of a renamed repository or user; clients repeat a POST as GET after 302, not after 307
    guests_see_members: bool  # who is in an organisation is told without a token, too
    hook_events_expanded: bool  # lists of a hook's events read back longer than written; else only `pull_request` does
    bad_hook_url_refused: bool  # 422 for a hook with an invalid URL
    not_found: str  # the message of a 404
    not_found_url_key: str  # the key under which a 404 names the documentation
    agit: bool  # accepts pushes to refs/for/… as pull requests, from everybody who may read
    newer_fields: bool  # comments and issues carry assets, repositories their topics


_GITEA_1_15 = Features(
    owner_filter=False,
    comments_paged="none",
    comments_counted=False,
    all_lists_counted=False,
    timeline=False,
    readers_set_status=True,
    collaborators_for_readers=False,
    permission_route=False,
    token_scopes=False,
    redirect_status=302,
    guests_see_members=True,
    hook_events_expanded=True,
    bad_hook_url_refused=False,
    not_found="Not Found",
    not_found_url_key="documentation_url",
    agit=False,
    newer_fields=False,
)
_GITEA_1_22 = Features(
    owner_filter=True,
    comments_paged="repo",
    comments_counted=True,
    all_lists_counted=True,
    timeline=True,
    readers_set_status=False,
    collaborators_for_readers=True,
    permission_route=True,
    token_scopes=True,
    redirect_status=307,
    guests_see_members=True,
    hook_events_expanded=True,
    bad_hook_url_refused=False,
    not_found="The target couldn't be found.",
    not_found_url_key="url",
    agit=True,
    newer_fields=True,
)
_GITEA_1_26 = replace(_GITEA_1_22, guests_see_members=False, hook_events_expanded=False)
_FORGEJO_13 = replace(_GITEA_1_22, comments_paged="both", bad_hook_url_refused=True)

VERSIONS = {"1.15": _GITEA_1_15, "1.22": _GITEA_1_22, "1.26": _GITEA_1_26, "13.0.0+gitea-1.22.0": _FORGEJO_13}


def features_of(version: str) -> Features:
    """The features of one of VERSIONS. Raises ValueError for any other."""
    try:
        return VERSIONS[version]
    except KeyError:
        raise ValueError(f"unknown version {version!r}: expected one of {', '.join(VERSIONS)}") from None
