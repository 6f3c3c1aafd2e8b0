"""Secrets of `infra.yml`: the file only says where they are, `env:NAME` or `file:path`."""

from __future__ import annotations

import os
from pathlib import Path

_BIGGEST = 1 << 20


class Unresolved(Exception):
    """The secret is not where the reference says. The message never holds a secret."""


def resolve(reference: str, folder: Path) -> str:
    """The secret. A path that is not whole begins at `folder`, where infra.yml lies. Raises Unresolved."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        value = os.environ.get(where, "")
        if not value:
            raise Unresolved(f"the environment variable {where} is empty or not set where cc-ci runs")
        return value
    if kind != "file":
        raise Unresolved("a secret must be env:NAME or file:path")
    path = folder / where
    try:
        if path.stat().st_size > _BIGGEST:
            raise Unresolved(f"{path} is bigger than {_BIGGEST >> 10} kB")
        value = path.read_text().rstrip("\r\n")
    except OSError as error:
        raise Unresolved(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unresolved(f"{path} is not in UTF-8") from error
    if not value:
        raise Unresolved(f"{path} is empty")
    return value
