"""A recipe's own settings for its tests: the file `cc-ci.toml`. Reading it touches nothing else.

What loosens a check counts only from the base branch: else a pull request could decide how it is tested (`effective`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

FILE = "cc-ci.toml"
BIGGEST = 64 << 10
_MOST_PARTS = 100
#: How long an app may take to come up when nobody says otherwise: abra's default too.
SETTLE_SECONDS = 300

StageName = Literal["install", "upgrade", "backup", "restore", "custom", "extra"]


class SettingsError(ValueError):
    """The file cannot be used; the message says where and what would be right."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class App(_Section):
    """What is asked to see whether the app answers."""

    path: str = Field(default="/", description="A page of the app that answers without a login.")
    status: tuple[int, ...] = Field(
        default=(), description="The answers that count; without it any below 500 that is the app's own."
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") or not value.isprintable() or " " in value:
            raise ValueError("must begin with a slash and hold no spaces")
        return value

    @field_validator("status")
    @classmethod
    def _codes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 100 <= code <= 599 for code in value):
            raise ValueError("must be HTTP status codes, such as [200, 302]")
        return value


class RecipeLimits(_Section):
    """Seconds; never more than the server's own limits."""

    settle_seconds: int | None = Field(default=None, ge=1, description="How long the app may take to come up.")
    stage_seconds: int | None = Field(default=None, ge=1, description="How long the tests of one stage may take.")
    run_seconds: int | None = Field(default=None, ge=1, description="How long the whole run may take.")


class BackupMeaning(_Section):
    """What a backup of this recipe is."""

    means: Literal["auto", "files", "dump"] = Field(
        default="auto", description="`files`: the data itself; `dump`: a file that a hook makes. `auto`: as the labels say."
    )


class Ports(_Section):
    exclusive: tuple[int, ...] = Field(default=(), description="Published ports that must be just these; runs take turns.")


class Picture(_Section):
    path: str = Field(default="/", description="The page that the picture shows.")
    off: bool = Field(default=False, description="Take no picture.")


class Env(_Section):
    """`[env]` with the names that a recipe chooses, and `[env.upgrade]` beneath it."""

    values: dict[str, str] = Field(
        default_factory=dict, description="Added to the app's `.env`, and filled in like it (`${DOMAIN}`)."
    )
    upgrade: dict[str, str] = Field(
        default_factory=dict, description="The same for the commit alone: what only the newer version needs."
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {"values": {k: v for k, v in given.items() if k != "upgrade"}, "upgrade": given.get("upgrade", {})}

    @field_validator("values", "upgrade")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not (name.isascii() and name.isidentifier()) or name in ("STACK_NAME", "DOMAIN", "LETS_ENCRYPT_ENV"):
                raise ValueError(f"{name!r} cannot be set here")
        return value


class RecipeSettings(_Section):
    """The whole file. A recipe without one has the defaults."""

    needs: tuple[Literal["oidc"], ...] = Field(
        default=(), description="What the server shall lend: `oidc`, a realm of the run's own."
    )
    app: App = App()
    limits: RecipeLimits = RecipeLimits()
    env: Env = Env()
    secrets: dict[str, str] = Field(
        default_factory=dict, description="Values for secrets in tests, by their name in the compose file; filled in, too."
    )
    backup: BackupMeaning = BackupMeaning()
    stages: dict[StageName, str] = Field(default_factory=dict, description="Stages that do not apply, each with the reason.")
    ports: Ports = Ports()
    picture: Picture = Picture()
    lint: dict[str, str] = Field(default_factory=dict, description="Rules of lint that are waived, each with the reason.")

    @field_validator("stages", "lint")
    @classmethod
    def _reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not reason.strip():
                raise ValueError(f"{name} needs a reason")
        return value


def parse(data: bytes | None) -> RecipeSettings:
    """The settings of a file's bytes; the defaults for None. Raises SettingsError that names each wrong key."""
    if data is None:
        return RecipeSettings()
    if len(data) > BIGGEST:
        raise SettingsError(f"{FILE} is bigger than {BIGGEST >> 10} kB.")
    try:
        text = data.decode()
        _refuse_long_keys(text)
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of a number that is too long
        raise SettingsError(f"{FILE} cannot be read: {error}") from error
    try:
        return RecipeSettings.model_validate(document)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors(include_url=False)[:10]]
        said = "; ".join(problems)
        raise SettingsError(f"{FILE}: {said}{'' if said.endswith('?') else '.'}") from error


def _refuse_long_keys(text: str) -> None:
    """Raises ValueError for a key of very many parts (`a.b.c…`), over which tomllib takes the square of their number."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.partition("=")[0].count(".") > _MOST_PARTS:
            raise ValueError(f"a key has more than {_MOST_PARTS} parts (at line {number})")


def _problem(error: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"] if part != "[key]"]
    if place[:2] == ["env", "values"]:  # not a name that a recipe writes
        del place[1]
    name = ".".join(place)
    if error["type"] == "extra_forbidden" or "[key]" in error["loc"]:
        near = get_close_matches(place[-1], list(_keys(place[:-1])), 1, 0.5)
        meant = ".".join([*place[:-1], *near])
        return f"there is no setting {name}" + (
            f"; did you mean {meant}?" if near else f" (known: {', '.join(_keys(place[:-1]))})"
        )
    return f"{name}: {str(error['msg']).removeprefix('Value error, ')}"


def _keys(place: list[str]) -> Iterator[str]:
    """The known keys of a section."""
    model: Any = RecipeSettings
    for part in place:
        field = model.model_fields.get(part)
        if part == "stages":
            yield from StageName.__args__  # type: ignore[attr-defined]
            return
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return
    yield from model.model_fields


def effective(base: RecipeSettings, own: RecipeSettings) -> tuple[RecipeSettings, list[str]]:
    """What counts for a pull request with `own` settings onto `base`, and a sentence for each change that waits for its merge.

    Tightening counts at once, loosening from the base only; what touches no check counts as the pull request has it.
    """
    counts, told = {}, []
    for name, looser in _LOOSER.items():
        before, after = getattr(base, name), getattr(own, name)
        if before != after and looser(before, after):
            counts[name] = before
            told += _changes(name, before, after)
    return own.model_copy(update=counts), told


def _app_looser(before: App, after: App) -> bool:
    if before == App():
        # Anything that asks for a real page is stricter than "some answer below 500".
        return not after.status or any(code >= 400 for code in after.status)
    return after.path != before.path or not after.status or not set(after.status) <= set(before.status or after.status)


def _limits_looser(before: RecipeLimits, after: RecipeLimits) -> bool:
    # Without a word of the recipe the server's own limits hold, which nothing here exceeds; an app has its 300 seconds.
    usual = {"settle_seconds": SETTLE_SECONDS}

    def seconds(limits: RecipeLimits, name: str) -> float:
        given: int | None = getattr(limits, name)
        return usual.get(name, float("inf")) if given is None else given

    return any(seconds(after, name) > seconds(before, name) for name in RecipeLimits.model_fields)


_LOOSER: dict[str, Any] = {
    "app": _app_looser,
    "limits": _limits_looser,
    "backup": lambda before, after: True,
    "stages": lambda before, after: any(after[name] != before.get(name) for name in after),
    "lint": lambda before, after: any(name not in before for name in after),
    # Not looser, but more than a stranger may ask of the machine: another's port.
    "ports": lambda before, after: any(port not in before.exclusive for port in after.exclusive),
}


def _changes(name: str, before: Any, after: Any) -> list[str]:
    old, new = (value if isinstance(value, dict) else value.model_dump() for value in (before, after))
    return [
        f"{FILE} changes {name}.{key} from {_shown(old.get(key))} to {_shown(new.get(key))}: that counts once it is merged."
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "nothing"
    return str(list(value)) if isinstance(value, tuple) else repr(value)[:100]


def table() -> str:
    """The settings as a Markdown table, for docs/write-tests.md."""
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in RecipeSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = default.__class__.model_fields if isinstance(default, BaseModel) else {}
        for key, part in (inner or {"": field}).items():
            text = part.get_default(call_default_factory=True)
            shown = "" if text in (None, (), {}) else f"`{text if isinstance(text, str) else str(text).lower()}`"
            written = name if key in ("", "values") else f"{name}.{key}"
            rows.append(f"| `{written}` | {shown} | {part.description} |")
    return "\n".join(rows)
