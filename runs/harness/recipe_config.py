"""A recipe's settings for its tests: the file `cc-ci.toml`. Reading it touches nothing else.

Whatever loosens a check counts only from the base branch; otherwise a pull request could decide how it is tested
(`effective`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runs.harness.stage_table import STAGES, StageName

FILE = "cc-ci.toml"
BIGGEST = 64 << 10
_MOST_PARTS = 100
#: How long an app may take to start by default, as in abra.
SETTLE_SECONDS = 300


class RecipeConfigError(ValueError):
    """The file is invalid; the message says where and what is expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class App(_Section):
    """How to find out whether the app answers."""

    path: str = Field(default="/", description="A page of the app that answers without a login.")
    status: tuple[int, ...] = Field(
        default=(), description="The status codes that count as healthy; by default, any below 500 sent by the app itself."
    )
    no_web: str = Field(default="", description="Why the app is not checked over HTTP, such as `speaks SMTP only`.")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") or not value.isprintable() or " " in value:
            raise ValueError("must begin with a slash and contain no spaces")
        return value

    @field_validator("status")
    @classmethod
    def _codes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 100 <= code <= 599 for code in value):
            raise ValueError("must be HTTP status codes, such as [200, 302]")
        return value


class RecipeLimits(_Section):
    """In seconds; never more than the server's own limits."""

    settle_seconds: int | None = Field(default=None, ge=1, description="How long the app may take to start.")
    stage_seconds: int | None = Field(default=None, ge=1, description="How long the tests of one stage may take.")
    run_seconds: int | None = Field(default=None, ge=1, description="How long the whole run may take.")


class BackupMeaning(_Section):
    """What a backup of this recipe consists of."""

    means: Literal["auto", "files", "dump"] = Field(
        default="auto", description="`files`: the data itself; `dump`: a file that a hook writes; `auto`: as the labels say."
    )


class Ports(_Section):
    exclusive: tuple[int, ...] = Field(
        default=(), description="Published ports that need exactly these numbers; runs take turns."
    )


class Screenshot(_Section):
    path: str = Field(default="/", description="The page to take a screenshot of.")
    off: bool = Field(default=False, description="Take no screenshot.")


class Env(_Section):
    """`[env]` with names chosen by the recipe, and `[env.upgrade]` below it."""

    values: dict[str, str] = Field(
        default_factory=dict, description="Added to the app's `.env`, with variables substituted (`${DOMAIN}`)."
    )
    upgrade: dict[str, str] = Field(
        default_factory=dict, description="The same for the commit only: what only the newer version needs."
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


class RecipeConfig(_Section):
    """The whole file. A recipe without one gets the defaults."""

    needs: tuple[Literal["oidc"], ...] = Field(
        default=(), description="What the server should provide: `oidc`, a realm for this run."
    )
    app: App = App()
    limits: RecipeLimits = RecipeLimits()
    env: Env = Env()
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="Values of secrets for tests, by their name in the compose file, with variables substituted.",
    )
    backup: BackupMeaning = BackupMeaning()
    stages: dict[StageName, str] = Field(default_factory=dict, description="Stages that do not apply, each with a reason.")
    ports: Ports = Ports()
    picture: Screenshot = Screenshot()
    lint: dict[str, str] = Field(default_factory=dict, description="Lint rules to waive, each with a reason.")

    @field_validator("stages", "lint")
    @classmethod
    def _reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not reason.strip():
                raise ValueError(f"{name} needs a reason")
        return value


def parse(data: bytes | None, kept: Mapping[str, Any] | None = None) -> RecipeConfig:
    """Parse a file's bytes; the defaults for None. Raises RecipeConfigError that names each wrong key.

    `kept`: the document kept on the server for this recipe. The recipe's own settings override it, key by key.
    """
    return _validated(_beneath(document(data), kept or {}))


def _beneath(above: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    joined = {**kept, **above}
    for name in above.keys() & kept.keys():
        if isinstance(above[name], dict) and isinstance(kept[name], dict):
            joined[name] = _beneath(above[name], kept[name])
    return joined


def document(data: bytes | None) -> dict[str, Any]:
    """Parse a file's bytes without validating them. Raises RecipeConfigError."""
    if data is None:
        return {}
    if len(data) > BIGGEST:
        raise RecipeConfigError(f"{FILE} is larger than {BIGGEST >> 10} kB.")
    try:
        text = data.decode()
        _refuse_long_keys(text)
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for a number that is too long
        raise RecipeConfigError(f"Cannot read {FILE}: {error}") from error


def _validated(found: Mapping[str, Any]) -> RecipeConfig:
    try:
        return RecipeConfig.model_validate(found)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors(include_url=False)[:10]]
        message = "; ".join(problems)
        raise RecipeConfigError(f"{FILE}: {message}{'' if message.endswith('?') else '.'}") from error


def _refuse_long_keys(text: str) -> None:
    """Raise ValueError for keys with very many parts (`a.b.c…`), for which tomllib takes quadratic time."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.partition("=")[0].count(".") > _MOST_PARTS:
            raise ValueError(f"a key has more than {_MOST_PARTS} parts (line {number})")


def _problem(error: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"] if part != "[key]"]
    if place[:2] == ["env", "values"]:  # not a name that a recipe writes
        del place[1]
    name = ".".join(place)
    if error["type"] == "extra_forbidden" or "[key]" in error["loc"]:
        near = get_close_matches(place[-1], list(_keys(place[:-1])), 1, 0.5)
        meant = ".".join([*place[:-1], *near])
        return f"unknown setting {name}" + (f"; did you mean {meant}?" if near else f" (known: {', '.join(_keys(place[:-1]))})")
    return f"{name}: {str(error['msg']).removeprefix('Value error, ')}"


def _keys(place: list[str]) -> Iterator[str]:
    """The known keys of a section."""
    model: Any = RecipeConfig
    for part in place:
        field = model.model_fields.get(part)
        if part == "stages":
            yield from STAGES
            return
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return
    yield from model.model_fields


def effective(base: RecipeConfig, own: RecipeConfig, trusted: bool = False) -> tuple[RecipeConfig, list[str]]:
    """The effective settings of a pull request with `own` settings onto `base`, and a sentence for each change pending a merge.

    Tightening counts at once, loosening only from the base; settings that affect no check count as the pull request has them.
    What does not apply, with its reason in the report, counts at once in a `trusted` person's commit.
    """
    counts, waits = {}, []
    for name, looser in _LOOSER.items():
        before, after = getattr(base, name), getattr(own, name)
        if before != after and looser(before, after) and not (trusted and name in _WITH_REASONS):
            counts[name] = before
            waits += _changes(name, before, after)
    if not trusted and (env := _chosen_by(base.env, own.env)) != own.env:
        counts["env"] = env
        waits.append(
            f"{FILE} selects other compose files (COMPOSE_FILE under [env]), which operators do not have: this counts "
            "once it is merged."
        )
    return own.model_copy(update=counts), waits


def _chosen_by(base: Env, own: Env) -> Env:
    """`own`, with the compose files that `base` selects."""
    name = "COMPOSE_FILE"
    values, upgrade = (
        {**{key: value for key, value in after.items() if key != name}, **({name: before[name]} if name in before else {})}
        for before, after in ((base.values, own.values), (base.upgrade, own.upgrade))
    )
    return own.model_copy(update={"values": values, "upgrade": upgrade})


def _app_looser(before: App, after: App) -> bool:
    if after.no_web and not before.no_web:
        return True
    before, after = (app.model_copy(update={"no_web": ""}) for app in (before, after))
    if before == after:
        return False
    if before == App():
        # Anything that asks for a real page is stricter than "some answer below 500".
        return not after.status or any(code >= 400 for code in after.status)
    return after.path != before.path or not after.status or not set(after.status) <= set(before.status or after.status)


def _limits_looser(before: RecipeLimits, after: RecipeLimits) -> bool:
    # By default the server's limits apply, which nothing here exceeds; an app has 300 seconds.
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
    # Not looser, but more than a stranger may ask of the machine: somebody else's port.
    "ports": lambda before, after: any(port not in before.exclusive for port in after.exclusive),
}


def new_values(base: RecipeConfig, counts: RecipeConfig) -> list[str]:
    """The names under [env], [env.upgrade] and [secrets] whose value differs from the base branch."""
    pairs = (
        (base.env.values, counts.env.values),
        (base.env.upgrade, counts.env.upgrade),
        (base.secrets, counts.secrets),
    )
    return sorted({name for before, after in pairs for name in after if after[name] != before.get(name)})


def touches_older(base: RecipeConfig, counts: RecipeConfig) -> list[str]:
    """The differing sections among those that also affect whether a published version starts and answers."""
    before, after = (
        {"env": one.env.values, **{name: getattr(one, name) for name in ("needs", "app", "limits", "secrets", "ports")}}
        for one in (base, counts)
    )
    return [name for name in before if before[name] != after[name]]


#: Sections whose values are reasons, shown in the report.
_WITH_REASONS = frozenset({"stages", "lint"})


def _changes(name: str, before: Any, after: Any) -> list[str]:
    old, new = (value if isinstance(value, dict) else value.model_dump() for value in (before, after))
    return [
        (f"{FILE} changes {name}.{key} from {_shown(old.get(key))} to {_shown(new.get(key))}: this counts once it is merged.")
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
    for name, field in RecipeConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = default.__class__.model_fields if isinstance(default, BaseModel) else {}
        for key, part in (inner or {"": field}).items():
            text = part.get_default(call_default_factory=True)
            shown = "" if text in (None, (), {}) else f"`{text if isinstance(text, str) else str(text).lower()}`"
            written = name if key in ("", "values") else f"{name}.{key}"
            rows.append(f"| `{written}` | {shown} | {part.description} |")
    return "\n".join(rows)
