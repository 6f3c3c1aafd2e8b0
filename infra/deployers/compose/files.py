"""Reads files of a recipe's checkout, which may be a stranger's: none outside it, and none that is too big."""

from __future__ import annotations

import os
from pathlib import Path

from infra.deployers.errors import DeployError

_BIGGEST = 1 << 20


def inside(checkout: Path, name: str, fix: str = "") -> Path:
    """The path of the file `name` in the checkout, following symlinks. Raises DeployError if it is outside or not a file.

    `fix`: what to do if there is no such file.
    """
    root = checkout.resolve()
    try:
        path = (root / name).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, a NUL, a loop of symlinks
        raise DeployError("invalid_recipe", f"The recipe has no file {name[:200]!r}.", fix) from None
    if not path.is_relative_to(root) or ".git" in path.relative_to(root).parts:
        raise DeployError("forbidden", f"{name} points outside the recipe.", "Keep the file inside the recipe.")
    if not there:
        raise DeployError("invalid_recipe", f"The recipe has no file {name}.", fix)
    return path


def exists(checkout: Path, name: str) -> bool:
    """Whether a file or folder of that name exists, following symlinks."""
    return os.path.exists(checkout / name)  # noqa: PTH110 - Path's own raises OSError for a name that is too long


def text(checkout: Path, name: str) -> str:
    """The text of a small file; empty if it does not exist. Raises DeployError."""
    if not exists(checkout, name):
        return ""
    path = inside(checkout, name)
    if path.stat().st_size > _BIGGEST:
        raise DeployError("invalid_recipe", f"{name} is larger than 1 MB.")
    return path.read_text(errors="replace")
