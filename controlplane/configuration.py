"""docs/configuration.md, made from the table of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from controlplane.config import BASE_DIR, Config

PATH = BASE_DIR / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Made by `cc-ci configuration --write` from controlplane/config.py. A test holds the two equal. -->

Settings come from the environment. Lines `NAME=value` of a file `.env` in the project's folder are read too, and count
where the environment does not have the name. `CC_CI_ENV_FILE` names another file; empty, none is read. A setting is read
at the start: after a change, start `cc-ci work` again.

A wrong value stops the start: the message has the setting's name and the reason, and the exit code is 64. `cc-ci doctor`
tells of names that begin with `CC_CI_` and mean nothing, and of those in `.env` that look like a slip of the keyboard.

Nothing needs to be set for a first try. On a server, set at least `CC_CI_BASE_URL`.

| setting | type | default | what it is |
|---|---|---|---|
"""

TAIL = """
Types: *flag* is `true` or `false` (also `1`, `0`, `yes`, `no`, `on`, `off`). *words* are separated by commas or spaces. Times are
seconds, sizes are megabytes (of 1024 × 1024 bytes).

## The database

```sh
DATABASE_URL=                                                # cc-ci.sqlite3 in CC_CI_DATA_DIR
DATABASE_URL=sqlite:///var/cc-ci.sqlite3                     # three slashes: from the project's folder
DATABASE_URL=sqlite:////srv/cc-ci/cc-ci.sqlite3              # four slashes: an absolute path
DATABASE_URL=postgresql://ccci:password@127.0.0.1:5432/ccci  # special characters in the password as %XX
DATABASE_URL=postgresql://ccci@/ccci                         # over the local socket
DATABASE_URL='postgresql://ccci:password@db/ccci?sslmode=verify-full'
```

SQLite carries one `cc-ci work`, with any number of workers (`CC_CI_WORKERS`); a second is refused. It is opened with a
write-ahead log and immediate transactions, and a writer waits up to 20 s for another. It must not lie on a network
filesystem. Several machines need PostgreSQL 14 or later, and a `CC_CI_HOST` of its own for each; their `SECRET_KEY` and
`CC_CI_SECRET_KEYS` must be the same.

## Times that depend on each other

`CC_CI_HTTP_TIMEOUT` < `CC_CI_QUEUE_TIMEOUT` < `CC_CI_QUEUE_RETRY`. A task that is given out again while it still runs
would run twice at once, so a start with other values is refused. A run is no task: `CC_CI_RUN_SECONDS` may be as long as
it takes.

## An example

```sh
CC_CI_BASE_URL=https://ci.example.org
CC_CI_DATA_DIR=/var/lib/cc-ci
CC_CI_DEPLOYER=swarm
CC_CI_DOMAIN=ci.example.org
CC_CI_SLOTS=2
```
"""


def document() -> str:
    """The text of docs/configuration.md."""
    rows = [
        f"| `{field.alias}` | {_type(field)} | {_default(field)} | {field.description} |"
        for field in Config.model_fields.values()
    ]
    return HEAD + "\n".join(rows) + "\n" + TAIL


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    kind = next((part for part in get_args(kind) if part is Path), kind)  # a path that may be left out
    if options := [option for option in get_args(kind) if kind is not None and isinstance(option, str)]:
        return ", ".join(f"`{option}`" for option in options)
    name = {"bool": "flag", "int": "number", "float": "number", "str": "text", "Path": "path"}.get(
        getattr(kind, "__name__", ""), "words"
    )
    limits = {type(limit).__name__: limit for limit in field.metadata}
    low: Any = getattr(limits.get("Ge"), "ge", None)
    high: Any = getattr(limits.get("Le"), "le", None)
    if low is not None and high is not None:
        return f"{name}, {low}–{high}"
    if low is not None:
        return f"{name}, at least {low}"
    return f"{name}, more than 0 up to {high}" if high is not None else name


def _default(field: FieldInfo) -> str:
    value = "" if field.default is None else field.default
    if value is PydanticUndefined:
        return "the host name"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        value = ",".join(value)
    return f"`{value}`" if value != "" else "empty"
