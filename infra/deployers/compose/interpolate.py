"""`${VARIABLE:-default}` as compose files know it. Pure.

Grammar: the interpolation section of the Compose specification, nested defaults included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEPTH = 20


class Unset(ValueError):
    """A variable that the file demands (`${X:?message}`) or a `$` that starts nothing."""


def interpolate(text: str, env: Mapping[str, str], depth: int = 0) -> str:
    """`text` with its variables filled in from `env`; an unset one without a default is empty. Raises Unset."""
    if depth > _DEPTH:
        raise Unset("variables are nested too deeply")
    parts: list[str] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            parts.append("$")
            at = dollar + 2
        elif following == "{":
            end = _closing(text, dollar + 2)
            parts.append(_braced(text[dollar + 2 : end], env, depth))
            at = end + 1
        elif name := _NAME.match(text, dollar + 1):
            parts.append(env.get(name.group(), ""))
            at = name.end()
        else:
            raise Unset(f"a lone $ in {text[:60]!r}: write $$ for a dollar")
    parts.append(text[at:])
    return "".join(parts)


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        if text.startswith("${", at):
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
    raise Unset(f"an unclosed ${{ in {text[:60]!r}")


def _braced(inner: str, env: Mapping[str, str], depth: int) -> str:
    name = _NAME.match(inner)
    if not name:
        raise Unset(f"${{{inner[:40]}}} names no variable")
    value = env.get(name.group())
    rest = inner[name.end() :]
    if not rest:
        return value or ""
    colon = rest.startswith(":")
    operator, word = rest[colon : colon + 1], rest[colon + 1 :]
    there = bool(value) if colon else value is not None
    if operator == "-":
        return (value or "") if there else interpolate(word, env, depth + 1)
    if operator == "+":
        return interpolate(word, env, depth + 1) if there else ""
    if operator == "?":
        if not there:
            raise Unset(f"{name.group()} is needed: {word or 'it is not set'}")
        return value or ""
    raise Unset(f"${{{inner[:40]}}} is not understood")
