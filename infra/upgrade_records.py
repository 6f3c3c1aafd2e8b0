"""The JSON columns of an upgrade: its request, and facts found along the way.

Keys are stored as named here. Rows of earlier versions may lack some, or have others that are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self


class _Record:
    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        names = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in stored.items() if name in names})

    def as_json(self) -> dict[str, Any]:
        """As JSON, without default values."""
        default = type(self)()
        return {name: value for name, value in vars(self).items() if value != getattr(default, name)}


@dataclass(frozen=True)
class Request(_Record):
    """The request, apart from the version."""

    kind: str = ""  #: rollback, snapshot, restore, restore-ours or deploy; empty: an upgrade
    host: str = ""  #: the host that executes it
    data: int | None = None  #: the snapshot whose data is restored first
    as_before: int | None = None  #: an earlier upgrade: the services are restored as they ran before it
    accept: str = ""  #: the fingerprint of unexpected changes that a person has seen
    sick: bool = False  #: the app may be unhealthy already
    soak: int | None = None  #: seconds, instead of the policy's
    volumes: str = ""  #: keep or replace those that still exist; empty: none may exist
    secrets: list[str] = field(default_factory=list)  #: the names of those that the data was used with
    back: str = ""  #: who requested a rollback while the upgrade was running


@dataclass(frozen=True)
class Facts(_Record):
    """Facts found by one step that later ones need."""

    worker: str = ""  #: the owner of the last lease
    session: int = 0  #: and its process's session
    commits: dict[str, str] = field(default_factory=dict)  #: of the "old" and the "new" version
    images: list[str] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    networks: dict[str, Any] = field(default_factory=dict)
    docker_began: str = ""
    docker_starts: int = 0
    settle_seconds: int | None = None
    settled_after: float = 0.0
    announced: list[str] = field(default_factory=list)  #: the marks of our deployments, in their order
    deployed: dict[str, dict[str, str]] = field(default_factory=dict)  #: mark -> service -> fingerprint
    services: list[str] = field(default_factory=list)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    soaking_since: str = ""
    blame: str = ""  #: why the new version is to blame; empty: it is not
    failed_in: str = ""
    data_back: bool = False
    logs: str | None = None
    swarm: list[str] = field(default_factory=list)
