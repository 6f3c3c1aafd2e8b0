"""The errors that a deployer raises, and whose fault each kind is."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "image_missing",
    "image_denied",
    "pull_failed",
    "out_of_memory",
    "not_applicable",
    "never_healthy",
    "never_answered",
    "exits",
    "rolled_back",
    "port_taken",
    "no_node",
    "no_address",
    "disk_full",
    "invalid_recipe",
    "forbidden",
    "config_immutable",
    "backup_failed",
    "restore_failed",
    "tool_missing",
    "tool_failed",
    "not_as_judged",
]
#: Kinds that say the recipe is at fault. The others are ours: the run is then *errored*, not *failed*.
RECIPES_FAULT: frozenset[str] = frozenset(
    {
        "image_missing",
        "out_of_memory",
        "never_healthy",
        "never_answered",
        "exits",
        "rolled_back",
        "invalid_recipe",
        "forbidden",
        "config_immutable",
        "backup_failed",
        "restore_failed",
    }
)


class DeployError(Exception):
    """A failed deployment.

    `message` says in one sentence what happened, `fix` what the reader can do. `recipes_fault` decides between *failed* and
    *errored*.
    """

    def __init__(self, kind: Kind, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fix = fix

    @property
    def recipes_fault(self) -> bool:
        return self.kind in RECIPES_FAULT

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class NotRunning(DeployError):
    """No container of a service is running, so nothing can be read, written or executed in it."""

    def __init__(self, service: str) -> None:
        super().__init__("tool_failed", f"No container of {service} is running.")
