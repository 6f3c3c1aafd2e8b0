"""Reading recipes in tests, as a run does: by Docker's own reader, without a daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose import recipe
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context
from infra.deployers.docker.cli import reader_problem

RUN = "0123456789abcdef0123456789abcdef"
STACK = "ccci-0123456789ab"
DOMAIN = "web.example.com"


def need_reader() -> None:
    """Make sure that Docker's command here reads compose files; else skip, or fail when CI=true."""
    if problem := reader_problem():
        if os.environ.get("CI") == "true":
            pytest.fail(problem.text)
        pytest.skip(problem.text)


def context(checkout: Path, **changes: Any) -> Context:
    return Context(RUN, "here", checkout.name, checkout, checkout, **{"domain": DOMAIN, **changes})


def write(folder: Path, text: str, **files: str) -> Path:
    """A recipe: its compose.yml, and more files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"compose.yml": text, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def load(checkout: Path, **changes: Any) -> Recipe:
    need_reader()
    return recipe.load(context(checkout, **changes), checkout)
