"""A recipe's release notes in a checkout: `release/<version>`, and `release/next` for the upcoming version."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from infra.deployers.compose import files
from infra.deployers.errors import DeployError

_FOLDER = "release"
_MOST = 100
_BIGGEST = 64 << 10
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"\w+(?:[.-]\w+)*")
#: What notes say when they speak of a volume: the word, Docker's folder, or its option -v.
_VOLUME = frozenset({"volume", "volumes", "v"})


def mentioned(checkout: Path, installed: Path) -> frozenset[str]:
    """The words of those notes in `checkout` that the `installed` version lacks or has with other text.

    Unreadable notes count as empty. A word consists of letters, digits and underscores, like a variable's name; a name
    with hyphens or dots counts whole, too.
    """
    try:
        names = sorted(path.name for path in (checkout / _FOLDER).iterdir())[-_MOST:]
    except OSError:
        return frozenset()
    texts = (text for name in names if (text := _text(checkout, name)) != _text(installed, name))
    return frozenset(word for text in texts for kind in (_WORD, _NAME) for word in kind.findall(text))


def tell_of_volume(words: Collection[str], volume: str) -> bool:
    """Whether notes with these words are about the volume: they name it, alone or after its stack's name, and speak of volumes.

    Its name may be just a word: `data`.
    """
    named = any(word == volume or word.endswith(f"_{volume}") for word in words)
    return named and any(word.casefold() in _VOLUME for word in words)


def _text(checkout: Path, name: str) -> str:
    try:
        return files.text(checkout, f"{_FOLDER}/{name}")[:_BIGGEST]
    except (DeployError, OSError):
        return ""
