"""The fake forge's tables, stored in one JSON file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from enrollment.fakeforge.model import (
    Application,
    Collaborator,
    Comment,
    Hook,
    Issue,
    Membership,
    Pull,
    Reaction,
    Redirect,
    Repo,
    Status,
    Team,
    Token,
    User,
)


@dataclass
class Tables:
    """All rows by id, and the last id of each table. `next_id` is the only source of new ids."""

    users: dict[int, User] = field(default_factory=dict)
    tokens: dict[int, Token] = field(default_factory=dict)
    applications: dict[int, Application] = field(default_factory=dict)
    memberships: dict[int, Membership] = field(default_factory=dict)
    teams: dict[int, Team] = field(default_factory=dict)
    collaborators: dict[int, Collaborator] = field(default_factory=dict)
    repos: dict[int, Repo] = field(default_factory=dict)
    # Of a row that is declared as an issue, a pull request's own columns would not be saved.
    issues: dict[int, Pull | Issue] = field(default_factory=dict)
    comments: dict[int, Comment] = field(default_factory=dict)
    reactions: dict[int, Reaction] = field(default_factory=dict)
    statuses: dict[int, Status] = field(default_factory=dict)
    hooks: dict[int, Hook] = field(default_factory=dict)
    redirects: dict[int, Redirect] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def next_id(self, counter: str) -> int:
        """Return the next id; deleted rows do not free theirs."""
        self.counters[counter] = self.counters.get(counter, 0) + 1
        return self.counters[counter]

    def save(self, path: Path) -> None:
        """Write everything to a file that only its owner can read, atomically."""
        draft = path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_JSON.dump_json(self))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tables:
        """Read what `save` wrote."""
        return _JSON.validate_json(path.read_bytes())


_JSON = TypeAdapter(Tables)
