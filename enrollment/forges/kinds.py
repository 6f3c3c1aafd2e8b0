"""The kinds of forges by name. To add one, add a folder beside `gitea/` and a name in this table."""

from __future__ import annotations

from enrollment.forges.base import ForgeKind
from enrollment.forges.gitea.kind import GITEA

KINDS: dict[str, ForgeKind] = {kind.name: kind for kind in (GITEA,)}
