"""Compares infra.yml with the database and with what runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from infra.config.edit import PinError, line_with
from infra.config.load import FILE, Declaration
from infra.config.schema import App, Git, Store
from infra.recipe_version import Unreadable, Version

Kind = Literal["add", "rename", "change", "remove", "behind", "refused", "running"]
#: What `apply` writes; the others are only shown.
APPLIED: frozenset[Kind] = frozenset({"add", "rename", "change", "remove"})


@dataclass(frozen=True)
class Known:
    """An app as cc-ci knows it: as last declared, and what was seen since. `running`: the version that runs."""

    app: App
    running: str = ""
    declared: bool = True
    contested: bool = False
    at_work: bool = False  #: an upgrade is running


@dataclass(frozen=True)
class Change:
    """One difference. `app` is empty for the whole file; `commit` is a line to put into the file."""

    kind: Kind
    app: str
    key: str = ""
    before: Any = None
    after: Any = None
    reason: str = ""
    line: int = 0
    commit: str = ""

    def __str__(self) -> str:
        what = ".".join(part for part in (self.app, self.key) if part)
        before, after = _differing(self.before, self.after)
        values = f": {_shown(before)} → {_shown(after)}" if self.kind == "change" else ""
        where = f" ({FILE}:{self.line})" if self.line else ""
        words = f"{_SIGNS[self.kind]} {what}{values}{where}{f'  {self.reason}' if self.reason else ''}"
        return f"{words}\n    {FILE}:{self.line}: {self.commit}" if self.commit else words


_SIGNS: dict[Kind, str] = {"add": "+", "rename": "~", "change": "~", "remove": "-", "behind": "!", "refused": "!", "running": "·"}


def diff(declared: Declaration, known: Mapping[str, Known], stores: Mapping[str, Store], git: Git) -> list[Change]:
    """All differences between the file and the rest, with reasons: those that `apply` would write, and those only shown."""
    changes = [
        Change("change", "", key, before, after, line=declared.line(key))
        for key, before, after in (
            ("git", _plain(git), _plain(declared.document.git)),
            ("stores", _plain_all(stores), _plain_all(declared.document.stores)),
        )
        if before != after
    ]
    renamed = renames(declared.apps, known)
    for name, app in declared.apps.items():
        old = renamed.get(name, name)
        line = declared.line("apps", name)
        if old != name:
            reason = f"Renamed from {old}: it is the same stack {app.stack} on the server {app.server}."
            kind: Kind = "refused" if known[old].at_work else "rename"
            changes.append(Change(kind, name, "", old, name, reason, line))
        row = known.get(old)
        if row is None or not row.declared:
            changes.append(Change("add", name, line=line, reason=_ownership(app)))
        changes += _of_app(name, app, row, declared)
    for name, row in known.items():
        if row.declared and name not in declared.apps and name not in renamed.values():
            kind = "refused" if row.at_work else "remove"
            changes.append(Change(kind, name, reason=_BUSY if row.at_work else "cc-ci no longer manages it; it keeps running."))
    return changes


_BUSY = "An upgrade is running; apply again when it has finished."


def renames(declared: Mapping[str, App], known: Mapping[str, Known]) -> dict[str, str]:
    """New names of apps that are known by another: they have the same stack."""
    left = {(row.app.server, row.app.stack): name for name, row in known.items() if name not in declared}
    fresh = {name: (app.server, app.stack) for name, app in declared.items() if name not in known}
    return {name: left[stack] for name, stack in fresh.items() if stack in left}


def _of_app(name: str, app: App, row: Known | None, declared: Declaration) -> Iterator[Change]:
    kept = _version(name, app, row, declared)
    yield from kept
    if row is None:
        return
    before, after = row.app.model_dump(mode="json"), app.model_dump(mode="json")
    skip = {change.key for change in kept if change.kind in ("behind", "refused")}
    for key in App.model_fields:
        if before[key] == after[key] or key in skip:
            continue
        line = declared.line("apps", name, key)
        if row.at_work:
            yield Change("refused", name, key, before[key], after[key], _BUSY, line)
        elif row.contested and key in ("owner", "version"):
            yield Change("refused", name, key, before[key], after[key], _contested(name), line)
        else:
            yield Change("change", name, key, before[key], after[key], _why(key, row, app), line)


def _contested(name: str) -> str:
    return f"It has drifted; choose first: cc-ci infra adopt {name}, restore-ours {name} or hand-over {name}."


def _version(name: str, app: App, row: Known | None, declared: Declaration) -> list[Change]:
    """How the pinned version relates to what runs. Empty for apps that cc-ci does not change."""
    if app.owner != "reconciled" or row is None:
        return []
    running = row.running or row.app.version  # if it was never seen, the last pin is the best guess
    line = declared.line("apps", name, "version")
    if not running:
        return [Change("running", name, "version", "", app.version, "It is not running yet, as far as cc-ci knows.", line)]
    try:
        runs = Version.parse(running)
    except Unreadable:
        reason = f"The version label of what runs is {running!r}, which cannot be compared. See: cc-ci infra status {name}"
        return [Change("refused", name, "version", running, app.version, reason, line)]
    wanted = Version.parse(app.version)
    if wanted < runs:
        number, commit = line, ""
        with suppress(PinError):
            number, commit = line_with(declared.text, name, "version", running)
        reason = f"The file is behind: {running} runs, and cc-ci never lowers a version. Commit this line:"
        return [Change("behind", name, "version", running, app.version, reason, number, commit)]
    if not row.running:
        return [Change("running", name, "version", "", app.version, "It is not running yet, as far as cc-ci knows.", line)]
    if wanted > runs:
        reason = f"{running} runs; {wanted} comes with the next upgrade."
        return [Change("running", name, "version", running, app.version, reason, line)]
    return []


def _why(key: str, row: Known, app: App) -> str:
    if key == "owner":
        return _ownership(app)
    if key in ("stack", "server", "domain") and row.running and (row.app.stack, row.app.server) != (app.stack, app.server):
        return f"The old stack {row.app.stack} on {row.app.server} keeps running: remove it manually when it is no longer needed."
    return ""


def _ownership(app: App) -> str:
    if app.owner == "reconciled":
        return "cc-ci deploys and upgrades it from now on."
    return "Its maintainers upgrade it; cc-ci changes nothing."


def _plain(value: Git | Store) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_defaults=True)


def _plain_all(stores: Mapping[str, Store]) -> dict[str, Any]:
    return {name: _plain(store) for name, store in stores.items()}


def _differing(before: Any, after: Any) -> tuple[Any, Any]:
    """Of two mappings, the keys that differ: a policy is too long to be shown whole."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return before, after
    same = {key for key in before if key in after and before[key] == after[key]}
    return tuple({key: value for key, value in side.items() if key not in same} for side in (before, after))  # type: ignore[return-value]


def _shown(value: Any) -> str:
    if value in (None, "", [], {}):
        return "nothing"
    return value if isinstance(value, str) else repr(value)[:200]


def to_apply(changes: Sequence[Change]) -> list[Change]:
    """Those that `apply` writes."""
    return [change for change in changes if change.kind in APPLIED]
