"""The table of stages; the ladder, the lists and the checks of names derive from it. Pure.

A new stage needs a row here, a function in `stages.py`, rows in docs/stages.md and docs/verdicts.md, and a test.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

OWN_TESTS = "the recipe's own tests"


class _Row(NamedTuple):
    name: str
    rung: str  #: the rung of the ladder that the stage counts for
    ability: str = ""  #: the ability that the deployer needs
    default: bool = True  #: whether a bare `!testme` runs it
    existing_app: bool = False  #: whether it can test an app that cc-ci did not deploy
    shapes: bool = False  #: whether it makes the app what later stages test, so that a retry cannot leave it out


class StageName(StrEnum):
    """All stages, in the order in which they run."""

    rung: str
    ability: str
    default: bool
    existing_app: bool
    shapes: bool

    INSTALL = _Row("install", "install", existing_app=True, shapes=True)
    UPGRADE = _Row("upgrade", "upgrade", ability="upgrade", shapes=True)
    BACKUP = _Row("backup", "backup and restore", ability="backup")
    RESTORE = _Row("restore", "backup and restore", ability="backup")
    CUSTOM = _Row("custom", OWN_TESTS, existing_app=True)
    EXTRA = _Row("extra", OWN_TESTS, default=False, existing_app=True)

    def __new__(cls, name: str, rung: str, ability: str, default: bool, existing_app: bool, shapes: bool) -> StageName:
        stage = str.__new__(cls, name)
        stage._value_ = name
        stage.rung, stage.ability, stage.default = rung, ability, default
        stage.existing_app, stage.shapes = existing_app, shapes
        return stage


STAGES = tuple(stage.value for stage in StageName)

#: The stages of a bare `!testme`.
DEFAULT_STAGES = tuple(stage.value for stage in StageName if stage.default)

#: The stages that a retry cannot leave out.
SHAPING = tuple(stage.value for stage in StageName if stage.shapes)

#: The rungs from the lowest, each with the stages it needs. Lint, the last, needs none.
LADDER = tuple(
    (rung, tuple(stage.value for stage in StageName if stage.rung == rung))
    for rung in (*dict.fromkeys(stage.rung for stage in StageName), "lint")
)


def in_order(wanted: Collection[str]) -> tuple[str, ...]:
    """These stages, in the order in which they run."""
    return tuple(stage for stage in STAGES if stage in wanted)
