"""A recipe's release notes in a checkout: `release/<version>`, and `release/next` for the upcoming version."""

from __future__ import annotations

import re
from pathlib import Path

from infra.deployers.compose import files
from infra.deployers.errors import DeployError

_FOLDER = "release"
_MOST = 100
_BIGGEST = 64 << 10


def mentioned(checkout: Path, installed: Path) -> frozenset[str]:
    """The words of those notes in `checkout` that the `installed` version lacks or has with other text.

    Unreadable notes count as empty. A word consists of letters, digits and underscores, like a variable's name.
    """
    try:
        names = sorted(path.name for path in (checkout / _FOLDER).iterdir())[-_MOST:]
    except OSError:
        return frozenset()
    texts = (text for name in names if (text := _text(checkout, name)) != _text(installed, name))
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def _text(checkout: Path, name: str) -> str:
    try:
        return files.text(checkout, f"{_FOLDER}/{name}")[:_BIGGEST]
    except (DeployError, OSError):
        return ""
