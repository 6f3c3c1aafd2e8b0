"""Secrets in `infra.yml`: the file only contains references, `env:NAME` or `file:path`."""

from __future__ import annotations

import os
from pathlib import Path

_BIGGEST = 1 << 20


class Unresolved(Exception):
    """The secret is not where the reference points. The message never contains a secret."""


def resolve(reference: str, folder: Path) -> str:
    """Resolve a reference. Relative paths start at `folder`, where infra.yml is. Raises Unresolved."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        value = os.environ.get(where, "")
        if not value:
            raise Unresolved(f"the environment variable {where} is empty or not set in cc-ci's environment")
        return value
    if kind != "file":
        raise Unresolved("a secret must be env:NAME or file:path")
    path = folder / where
    try:
        if path.stat().st_size > _BIGGEST:
            raise Unresolved(f"{path} is larger than {_BIGGEST >> 10} kB")
        value = path.read_text().rstrip("\r\n")
    except OSError as error:
        raise Unresolved(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unresolved(f"{path} is not valid UTF-8") from error
    if not value:
        raise Unresolved(f"{path} is empty")
    return value
