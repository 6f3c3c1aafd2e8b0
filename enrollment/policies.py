"""Who may ask, as the rows of a forge and of a repository say it: the repository's word counts before its forge's.

Lists add up: who is allowed or blocked by either is so. A block stands above everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enrollment.models import Forge, Repository, Switch


@dataclass(frozen=True)
class Policy:
    """What holds at one repository. `team` names a team of its organisation; members of that team may ask, too."""

    members: bool = True
    team: str = ""
    collaborators: bool = True
    allow: frozenset[int] = frozenset()
    block: frozenset[int] = frozenset()
    approval: bool = False  #: whether a stranger's run of their own code waits for approval, where it would be refused else

    def as_json(self) -> dict[str, Any]:
        """What of it is kept with a decision."""
        return {"members": self.members, "team": self.team, "collaborators": self.collaborators, "approval": self.approval}


def merge(forge: Forge, repository: Repository) -> Policy:
    """The two rows in one. Pure."""
    return Policy(
        members=_either(repository.members_may_ask, forge.members_may_ask),
        team=repository.team or forge.team,
        collaborators=_either(repository.collaborators_may_ask, forge.collaborators_may_ask),
        allow=frozenset([*forge.allow, *repository.allow]),
        block=frozenset([*forge.block, *repository.block]),
        approval=_either(repository.strangers_await_approval, forge.strangers_await_approval),
    )


def policy_of(repository: Repository) -> Policy:
    """What holds at a repository."""
    return merge(repository.forge, repository)


def _either(own: str, forges: bool) -> bool:
    return forges if own == Switch.INHERIT else own == Switch.ON
