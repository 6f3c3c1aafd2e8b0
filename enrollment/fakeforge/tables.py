"""The fake forge's tables, stored in one JSON file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from enrollment.fakeforge import model
from enrollment.fakeforge.model import (
    Application,
    Collaborator,
    Comment,
    Hook,
    Issue,
    Membership,
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
    issues: dict[int, Issue] = field(default_factory=dict)
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
        rows = {f.name: list(getattr(self, f.name).values()) for f in fields(self) if f.name != "counters"}
        draft = path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"counters": self.counters, **rows}, file, default=_plain)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tables:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        tables = cls(counters=data.pop("counters"))
        for name, rows in data.items():
            getattr(tables, name).update({row["id"]: _row(row) for row in rows})
        return tables


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return {"type": type(value).__name__, **vars(value)}


def _row(data: dict[str, Any]) -> Any:
    kind = getattr(model, data.pop("type"))
    for column in fields(kind):
        # Annotations are strings here; time columns are those annotated as such.
        if str(column.type).startswith("datetime") and data[column.name] is not None:
            data[column.name] = datetime.fromisoformat(data[column.name])
    return kind(**data)
