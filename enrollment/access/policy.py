"""Who may ask, as configured at a forge and a repository: the repository's value takes precedence.

Lists are combined: whoever is allowed or blocked by either is so. A block overrides everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enrollment.models import Forge, Repository, Switch


@dataclass(frozen=True)
class Policy:
    """The policy that applies to a repository. `team` names a team of its organisation whose members may ask, too."""

    members: bool = True
    team: str = ""
    collaborators: bool = True
    allow: frozenset[int] = frozenset()
    block: frozenset[int] = frozenset()
    approval: bool = False  #: whether a stranger's run of their own code waits for approval instead of being refused

    def as_json(self) -> dict[str, Any]:
        """The part that is stored with a decision."""
        return {"members": self.members, "team": self.team, "collaborators": self.collaborators, "approval": self.approval}


def merge(forge: Forge, repository: Repository) -> Policy:
    """Combine the two rows. Pure."""
    return Policy(
        members=_either(repository.members_may_ask, forge.members_may_ask),
        team=repository.team or forge.team,
        collaborators=_either(repository.collaborators_may_ask, forge.collaborators_may_ask),
        allow=frozenset([*forge.allow, *repository.allow]),
        block=frozenset([*forge.block, *repository.block]),
        approval=_either(repository.strangers_await_approval, forge.strangers_await_approval),
    )


def policy_of(repository: Repository) -> Policy:
    """The policy that applies to a repository."""
    return merge(repository.forge, repository)


def _either(own: str, forges: bool) -> bool:
    return forges if own == Switch.INHERIT else own == Switch.ON
