"""May this person ask for a run of this pull request? A pure decision over gathered facts, and the gathering.

People are identified by id. A name is only used to ask the forge, after the forge has confirmed whose name it is now: names
change, and freed names are taken by others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, Literal

from django.conf import settings

from enrollment.access.policy import Policy, policy_of
from enrollment.forge_access.clients import kind_of
from enrollment.forge_access.permissions import NO_ORGANISATION
from enrollment.forges.base import Forbidden, ForgeClient, NotFound, Pull, Push, User
from enrollment.models import Comment, Forge, Repository, Right

MIN_SHA = 7
NO_POLICY = Policy()


@dataclass(frozen=True)
class Person:
    """One person's role at a repository, each fact by user id."""

    id: int
    login: str
    is_self: bool = False
    is_bot: bool = False
    is_blocked: bool = False
    is_owner: bool = False
    is_member: bool = False
    is_team: bool = False
    is_collaborator: bool = False
    is_allowed: bool = False
    #: What the forge does not let cc-ci see although the person may be listed there: unknown, so they may not ask.
    unseen: tuple[str, ...] = ()

    @property
    def unheard(self) -> bool:
        """Whether this person gets no answer, whatever else holds."""
        return self.is_self or self.is_bot or self.is_blocked

    @property
    def trusted(self) -> bool:
        yes = self.is_owner or self.is_member or self.is_team or self.is_collaborator or self.is_allowed
        return yes and not self.unheard

    def standing(self) -> str:
        """Why the person may or may not ask, as text."""
        if self.is_self:
            return "is cc-ci itself"
        if self.is_bot:
            return "is a bot"
        if self.is_blocked:
            return "is blocked"
        for fact, words in (
            (self.is_owner, "owns the repository"),
            (self.is_member, "is a member of the organisation"),
            (self.is_team, "is in the team that may ask"),
            (self.is_collaborator, "is a collaborator"),
            (self.is_allowed, "is on the allow-list"),
        ):
            if fact:
                return words
        nothing = "is neither owner, member nor collaborator, and not on the allow-list"
        return f"{nothing}, as far as cc-ci can see; it cannot see {'; '.join(self.unseen)}" if self.unseen else nothing


@dataclass(frozen=True)
class Code:
    """Where a pull request's code comes from. `unknown`: the forge does not say clearly, so the code is a stranger's."""

    kind: Literal["branch", "fork", "agit", "unknown"] = "unknown"
    place: str = ""  #: the fork
    owner: Person | None = None  #: of the fork, where the author is trusted
    doubt: str = ""  #: why it is a stranger's, whoever the author and the owner are

    def trusted(self, author: Person) -> bool:
        """Whether only trusted people can have pushed the code."""
        if self.doubt:
            return False
        if self.kind == "fork":
            return author.trusted and self.owner is not None and self.owner.trusted
        return self.kind == "branch" or (self.kind == "agit" and author.trusted)

    def origin(self, author: Person) -> str:
        """Where the code comes from, and which of the people behind it is not trusted, as text."""
        where = {"fork": f"from the fork {self.place}", "agit": "by a push without a branch (AGit)", "branch": "from a branch"}
        people = {person.id: person for person in (author, self.owner) if person and not person.trusted}
        whose = [f"{person.login} (user {person.id}), who {person.standing()}" for person in people.values()]
        text = f"the code comes {where.get(self.kind, 'from an unknown source')}"
        if whose:
            text += f"; not trusted: {' and '.join(whose)}"
        return f"{text}; {self.doubt}" if self.doubt else text


#: For when the code's origin was not checked: only who asks matters.
NOT_ASKED = Code(doubt="its origin was not checked")


@dataclass(frozen=True)
class Facts:
    """Everything a decision is based on."""

    asker: Person
    author: Person
    code: Code
    head_sha: str
    commits: tuple[str, ...] = ()  #: of the pull request; gathered when a commit was named
    wanted_sha: str = ""
    pushed_after_comment: bool | None = None  #: None: the forge does not say when the head was pushed
    policy: Policy = NO_POLICY
    approved: tuple[str, ...] = ()  #: commits of this pull request that a trusted person approved

    @property
    def strange_code(self) -> bool:
        """Whether the code may come from somebody who is not trusted."""
        return not self.code.trusted(self.author)

    def trusts(self, sha: str) -> bool:
        """Whether a commit of the pull request runs as trusted. Of an AGit pull request only the head is known to be its
        author's.
        """
        return self.asker.trusted and not self.strange_code and (self.code.kind != "agit" or sha == self.head_sha)

    def as_json(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["commits"] = len(self.commits)
        facts["policy"] = self.policy.as_json()
        return facts


@dataclass(frozen=True)
class Decision:
    """`allowed` with the commit to pin, or not allowed with the kind of refusal. `reason` is for the audit trail."""

    allowed: bool
    reason: str
    sha: str = ""
    refusal: str = ""  #: nothing, outsider, needs_approval, needs_sha, unknown_sha, ambiguous_sha


def decide(facts: Facts) -> Decision:
    """Decide on a comment. Pure."""
    asker = facts.asker
    who = f"{asker.login} (user {asker.id}) {asker.standing()}"
    if asker.unheard:
        return Decision(False, who, refusal="nothing")
    if not asker.trusted and not (facts.policy.approval and asker.id == facts.author.id):
        return Decision(False, who, refusal="outsider")
    named = _named(facts, who) if facts.wanted_sha else None
    if named and not named.allowed:
        return named
    sha = named.sha if named else facts.head_sha
    if not asker.trusted:
        return _stranger(facts, who, sha)
    if facts.strange_code and facts.wanted_sha != sha:
        # Not named, or by so few digits that somebody can create another commit with the same ones.
        origin = facts.code.origin(facts.author)
        if facts.pushed_after_comment is None:
            return Decision(False, f"{who}; {origin}; the forge does not say when it was pushed", sha, "needs_sha")
        if facts.pushed_after_comment:
            return Decision(False, f"{who}; {origin}; something was pushed since the comment", sha, "needs_sha")
        return Decision(True, f"{who}; {origin}; the timeline shows no push since the comment", sha)
    return named or Decision(True, who, sha)


def _named(facts: Facts, who: str) -> Decision:
    """Find the one commit of the pull request that was named."""
    found = sorted({sha for sha in (facts.head_sha, *facts.commits) if sha.startswith(facts.wanted_sha)})
    if len(facts.wanted_sha) < MIN_SHA or len(found) > 1:
        return Decision(False, f"{who}; {facts.wanted_sha!r} is too short to name one commit", refusal="ambiguous_sha")
    if not found:
        return Decision(False, f"{who}; {facts.wanted_sha} is not a commit of this pull request", refusal="unknown_sha")
    return Decision(True, f"{who}; named the commit", sha=found[0])


def _stranger(facts: Facts, who: str, sha: str) -> Decision:
    """Decide for an author who may not ask, where strangers' runs can be approved, one commit at a time."""
    if sha in facts.approved:
        return Decision(True, f"{who}; {sha[:10]} was approved earlier", sha=sha)
    return Decision(False, f"{who}; a run of {sha[:10]} needs approval", sha=sha, refusal="needs_approval")


@dataclass(frozen=True)
class Approval:
    """What the decision on an approval is based on: who gives it, and for which commit."""

    asker: Person
    waiting_sha: str  #: of the waiting run
    wanted_sha: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def approve(facts: Approval) -> Decision:
    """Whether a waiting run is approved. Pure. Only for the waiting commit, named by its whole id: it may differ from the one
    the person reviewed, and a commit with the same few digits is quickly made.
    """
    who = f"{facts.asker.login} (user {facts.asker.id}) {facts.asker.standing()}"
    if facts.asker.unheard:
        return Decision(False, who, refusal="nothing")
    if not facts.asker.trusted:
        return Decision(False, who, refusal="outsider")
    if facts.wanted_sha == facts.waiting_sha:
        return Decision(True, f"{who}; approved, naming the commit", facts.waiting_sha)
    if not facts.waiting_sha.startswith(facts.wanted_sha):
        return Decision(False, f"{who}; {facts.wanted_sha} is not the waiting commit", refusal="unknown_sha")
    return Decision(False, f"{who}; the approval must name the whole commit id", refusal="needs_sha")


def is_sha(text: str) -> bool:
    """Whether a word could be a commit id: 7 to 64 hex digits in upper or lower case."""
    return re.fullmatch(rf"[0-9a-f]{{{MIN_SHA},64}}", text.lower()) is not None


def gather(
    asker: Person,
    comment: Comment,
    repository: Repository,
    pull: Pull,
    wanted_sha: str,
    client: ForgeClient,
    approved: tuple[str, ...] = (),
) -> Facts:
    """Ask the forge for the facts about a comment. Raises ForgeError; then nothing is decided, and the caller retries."""
    author = asker if pull.author.id == asker.id else person(pull.author, repository, client)

    @cache
    def newest_push() -> Push | None:
        return client.last_push(repository.owner, repository.name, pull.number)

    facts = Facts(
        asker,
        author,
        _code(pull, author, repository, client, newest_push) if asker.trusted else NOT_ASKED,
        pull.head_sha,
        wanted_sha=wanted_sha.lower(),
        policy=policy_of(repository),
        approved=approved,
    )
    if wanted_sha:
        facts = replace(facts, commits=tuple(client.pull_commits(repository.owner, repository.name, pull.number)))
    if facts.strange_code and asker.trusted and wanted_sha not in (pull.head_sha, *facts.commits):
        push = newest_push()
        _compare(repository.forge, push is not None)
        return replace(facts, pushed_after_comment=_pushed_after(comment.created_at, pull.head_sha, push))
    return facts


def code_of(pull: Pull, repository: Repository, client: ForgeClient) -> tuple[Code, Person]:
    """Where the code of a pull request comes from, and its author. Raises ForgeError."""
    author = person(pull.author, repository, client)
    push = cache(lambda: client.last_push(repository.owner, repository.name, pull.number))
    return _code(pull, author, repository, client, push), author


def _code(
    pull: Pull, author: Person, repository: Repository, client: ForgeClient, newest_push: Callable[[], Push | None]
) -> Code:
    head = pull.head
    if head is None:
        return Code(doubt="its head repository was deleted")
    if pull.agit:
        return Code("agit", doubt=_pushed_by_another(pull, author, newest_push) if author.trusted else "")
    if not head.branch:
        return Code(doubt=f"the head is not a branch of {head.full_name}, or the branch was deleted")
    if head.repo_id == pull.base.id:
        return _own_code(pull, head.branch, repository, client)
    if not author.trusted:
        return Code("fork", head.full_name)
    owner = author if head.owner.id == author.id else person(head.owner, repository, client)
    doubt = ""
    if owner.is_owner and owner.id != author.id and not policy_of(repository).members:
        # An organisation whose members the policy does not trust.
        doubt = f"{owner.login} owns both the fork and this repository, and its members may not ask here"
    return Code("fork", head.full_name, owner, doubt)


def _own_code(pull: Pull, branch: str, repository: Repository, client: ForgeClient) -> Code:
    """Only people with write access can put a commit on a branch of the repository. The forge has to show that branch at the
    head.
    """
    try:
        tip = client.branch_head(repository.owner, repository.name, branch)
    except (NotFound, Forbidden) as error:
        return Code(doubt=f"the branch {branch} cannot be seen in the repository ({error})")
    if tip != pull.head_sha:
        return Code(doubt=f"the branch {branch} of the repository is at another commit")
    return Code("branch")


def _pushed_by_another(pull: Pull, author: Person, newest_push: Callable[[], Push | None]) -> str:
    """Why an AGit head may not be the author's; empty if it is the author's.

    The forge attributes a push to whoever has the name under which the pull request was opened. That may now be somebody else:
    if a pull request is closed when its author is renamed, the forge keeps the old name.
    """
    push = newest_push()
    if push is None or push.sha != pull.head_sha:
        return "the forge does not say who pushed the head"
    return "" if push.by == author.id else f"the head was pushed by user {push.by}, who is not the author"


def _pushed_after(written: datetime, head: str, push: Push | None) -> bool | None:
    """Whether something was pushed after the comment was written or the review begun: what was pushed meanwhile may not have
    been reviewed. None if the forge does not say. Pure.
    """
    if push is None or push.at is None:
        return None
    # Times are in whole seconds: a push in the comment's second may have come after it.
    if push.at >= written.replace(microsecond=0):
        return True
    return False if push.sha == head else None


def _compare(forge: Forge, timeline: bool) -> None:
    """Compare an answer with the forge's known capabilities; if they differ, all are checked again."""
    known = forge.abilities.get("timeline", {}).get("value")
    if known is not None and known is not timeline:
        Forge.objects.filter(pk=forge.pk).update(abilities_at=None)


def person(user: User, repository: Repository, client: ForgeClient) -> Person:
    """A person's role, with no more requests than needed: the first fact that gives trust ends the asking. Nothing is cached:
    whoever leaves the organisation is no longer trusted from the next question on.
    """
    forge, policy = repository.forge, policy_of(repository)
    bots = {name.lower() for name in settings.CC_CI.bots}
    if user.id == forge.bot_id:
        return Person(user.id, user.login, is_self=True)
    if user.login.lower() in bots:
        return Person(user.id, user.login, is_bot=True)
    if user.id in policy.block:
        return Person(user.id, user.login, is_blocked=True)
    if user.id == repository.owner_id:
        return Person(user.id, user.login, is_owner=True)
    if user.id in policy.allow:
        return Person(user.id, user.login, is_allowed=True)
    try:
        named = client.user(user.login)
    except Forbidden as error:
        return Person(
            user.id,
            user.login,
            unseen=(f"whether {user.login} is still that person's name {_why(scope_for(forge, 'people'), error)}",),
        )
    if named is None or named.id != user.id:
        # The name now belongs to nobody or to somebody else: no answer about it would be about this person.
        return Person(user.id, user.login)
    unseen: list[str] = []
    if policy.members and _is(
        lambda: client.is_member(repository.owner, user.login), f"members of {repository.owner}", forge, unseen
    ):
        return Person(user.id, user.login, is_member=True)
    if policy.team and _in_team(repository, policy.team, user, client, unseen):
        return Person(user.id, user.login, is_team=True)
    if policy.collaborators and client.is_collaborator(repository.owner, repository.name, user.login):
        return Person(user.id, user.login, is_collaborator=True)
    return Person(user.id, user.login, unseen=tuple(unseen))


def _is(ask: Callable[[], bool | None], of: str, forge: Forge, unseen: list[str]) -> bool | None:
    """Ask. That the token may not see the answer is a fact, not a failure."""
    try:
        return ask()
    except Forbidden as error:
        unseen.append(f"the {of} {_why(scope_for(forge, 'membership'), error)}")
        return False


def _in_team(repository: Repository, team: str, user: User, client: ForgeClient, unseen: list[str]) -> bool:
    before = len(unseen)
    name, forge = f"team {team} of {repository.owner}", repository.forge
    found = _is(lambda: client.in_team(repository.owner, team, user.login), name, forge, unseen)
    if found is None and len(unseen) == before and not is_a_person(repository):
        unseen.append(f"the {name} {_why('it does not exist, or cc-ci is not in it', scope_for(forge, 'membership'))}")
    return bool(found)


def scope_for(forge: Forge, permission: str) -> str:
    """The scope that a token of this forge needs, as "scope NAME"; empty if it needs none."""
    scope = kind_of(forge).scopes.get(permission)
    return f"scope {scope}" if scope else ""


def _why(*reasons: object) -> str:
    return f"({'; '.join(str(reason) for reason in reasons if reason)})"


def is_a_person(repository: Repository) -> bool:
    """Whether the owner is known not to be an organisation: then there are no teams, and nothing is hidden."""
    rows = Right.objects.filter(forge=repository.forge, repository=None, owner=repository.owner, name="membership")
    return rows.filter(evidence__endswith=NO_ORGANISATION).exists()
