"""May this person ask for a run of this pull request? A pure decision over gathered facts, and the gathering.

People are known by their ids. A name is only used to ask the forge, after the forge has said whose name it is now: names
change, and freed names are taken by others.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from django.conf import settings

from enrollment.forges.base import ForgeClient, Pull, User
from enrollment.models import Comment, Repository

MIN_SHA = 7


@dataclass(frozen=True)
class Person:
    """One person's standing at a repository, each fact by user id."""

    id: int
    login: str
    is_self: bool = False
    is_bot: bool = False
    is_owner: bool = False
    is_member: bool = False
    is_collaborator: bool = False
    is_allowed: bool = False

    @property
    def trusted(self) -> bool:
        machine = self.is_self or self.is_bot
        return not machine and (self.is_owner or self.is_member or self.is_collaborator or self.is_allowed)

    def standing(self) -> str:
        """Why they may, or that they may not, in words."""
        if self.is_self:
            return "is cc-ci itself"
        if self.is_bot:
            return "is a bot"
        for fact, words in (
            (self.is_owner, "owns the repository"),
            (self.is_member, "is a member of the organisation"),
            (self.is_collaborator, "is a collaborator"),
            (self.is_allowed, "is on the allow-list"),
        ):
            if fact:
                return words
        return "is neither owner, member, collaborator nor on the allow-list"


@dataclass(frozen=True)
class Facts:
    """All that a decision stands on."""

    asker: Person
    author: Person
    from_fork: bool
    head_sha: str
    commits: tuple[str, ...] = ()  #: of the pull request; gathered when a commit was named
    wanted_sha: str = ""
    pushed_after_comment: bool | None = None  #: None: the server keeps no timeline that would tell

    @property
    def strange_code(self) -> bool:
        """Whether the code comes from somebody who is not trusted."""
        return self.from_fork and not self.author.trusted

    def as_json(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["commits"] = len(self.commits)
        return facts


@dataclass(frozen=True)
class Decision:
    """`allowed` with the commit to pin, or not with the kind of refusal. `reason` is for the trail."""

    allowed: bool
    reason: str
    sha: str = ""
    refusal: str = ""  #: nothing, outsider, needs_sha, unknown_sha, ambiguous_sha


def decide(facts: Facts) -> Decision:
    """The decision. Pure."""
    asker = facts.asker
    who = f"{asker.login} (user {asker.id}) {asker.standing()}"
    if asker.is_self or asker.is_bot:
        return Decision(False, who, refusal="nothing")
    if not asker.trusted:
        return Decision(False, who, refusal="outsider")
    if facts.wanted_sha:
        found = sorted({sha for sha in (facts.head_sha, *facts.commits) if sha.startswith(facts.wanted_sha)})
        if len(facts.wanted_sha) < MIN_SHA or len(found) > 1:
            return Decision(False, f"{who}; {facts.wanted_sha!r} is too short to name one commit", refusal="ambiguous_sha")
        if not found:
            return Decision(False, f"{who}; {facts.wanted_sha} is no commit of this pull request", refusal="unknown_sha")
        return Decision(True, f"{who}; named the commit", sha=found[0])
    if facts.strange_code:
        origin = f"the code comes from the fork of {facts.author.login} (user {facts.author.id}), who {facts.author.standing()}"
        if facts.pushed_after_comment is None:
            return Decision(False, f"{who}; {origin}; the forge does not tell when it was pushed", refusal="needs_sha")
        if facts.pushed_after_comment:
            return Decision(False, f"{who}; {origin}; something was pushed since the comment", refusal="needs_sha")
        return Decision(True, f"{who}; {origin}; the timeline shows no push since the comment", sha=facts.head_sha)
    return Decision(True, who, sha=facts.head_sha)


def is_sha(text: str) -> bool:
    """Whether a word could name a commit: hex digits, in lower case after folding, 7 to 64 of them."""
    return re.fullmatch(rf"[0-9a-f]{{{MIN_SHA},64}}", text.lower()) is not None


def gather(asker: Person, comment: Comment, repository: Repository, pull: Pull, wanted_sha: str, client: ForgeClient) -> Facts:
    """Ask the forge for the facts about a comment. Raises ForgeError; then nothing is decided, and it is asked again."""
    author = asker if pull.author.id == asker.id else person(pull.author, repository, client)
    facts = Facts(asker, author, pull.from_fork, pull.head_sha, wanted_sha=wanted_sha.lower())
    if wanted_sha:
        return replace(facts, commits=tuple(client.pull_commits(repository.owner, repository.name, pull.number)))
    if facts.strange_code:
        # The head was read before the timeline: a push in between is seen here, and the commit pinned is the older one.
        last_push = client.last_push(repository.owner, repository.name, pull.number)
        # Whole seconds: a push in the very second of the comment may have come after it.
        pushed = None if last_push is None else last_push >= comment.created_at.replace(microsecond=0)
        return replace(facts, pushed_after_comment=pushed)
    return facts


def person(user: User, repository: Repository, client: ForgeClient) -> Person:
    """A person's standing, asking no more than is needed: the first fact that gives trust ends the asking."""
    forge = repository.forge
    bots = {name.lower() for name in settings.CC_CI.bots}
    if user.id == forge.bot_id:
        return Person(user.id, user.login, is_self=True)
    if user.login.lower() in bots:
        return Person(user.id, user.login, is_bot=True)
    if user.id == repository.owner_id:
        return Person(user.id, user.login, is_owner=True)
    if user.id in (*forge.allow, *repository.allow):
        return Person(user.id, user.login, is_allowed=True)
    named = client.user(user.login)
    if named is None or named.id != user.id:
        # The name belongs to nobody, or to somebody else by now: nothing that is asked by it would be about this person.
        return Person(user.id, user.login)
    if client.is_member(repository.owner, user.login):
        return Person(user.id, user.login, is_member=True)
    if client.is_collaborator(repository.owner, repository.name, user.login):
        return Person(user.id, user.login, is_collaborator=True)
    return Person(user.id, user.login)
