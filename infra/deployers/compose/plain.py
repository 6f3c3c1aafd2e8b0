"""Reads compose files without Docker for the `process` deployer, which runs services as plain processes in a sandbox.

Only `x-cc-ci-process`, `environment`, `image` and labels of a service are used. Nothing read here is given to Docker.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.deployers.compose import safeyaml
from infra.deployers.compose.environment import Filling
from infra.deployers.compose.files import inside, text
from infra.deployers.compose.recipe import Recipe, compose_files, mapping, overlays_in, read_environment
from infra.deployers.context import Context
from infra.deployers.errors import DeployError

_KEY = "x-cc-ci-process"
#: What is taken of a service as it is written. The rest may be in short forms, which only Docker's own reader unfolds.
_USED = ("image", _KEY)
_MOST_FILES = 50


@dataclass(frozen=True)
class Process:
    """How to run a service without a container (`x-cc-ci-process`)."""

    service: str
    command: list[str]
    environment: dict[str, str]
    listens: bool  #: the command asks for ${PORT}


def load(context: Context, checkout: Path) -> Recipe:
    """Read the compose files named by the environment; later files override earlier ones. Raises DeployError invalid_recipe."""
    env = dict(read_environment(context, checkout)[0].values)
    names = [*compose_files(env), *overlays_in(context, checkout)]
    document: dict[str, Any] = {}
    if len(names) > _MOST_FILES:
        raise DeployError(
            "invalid_recipe",
            f"The recipe names {len(names)} compose files, more than {_MOST_FILES}.",
            "List fewer in COMPOSE_FILE.",
        )
    for name in names:
        document = _over(document, _read(checkout, name, env))
    services = {name: _service(mapping(written), env) for name, written in mapping(document.get("services")).items()}
    recipe = Recipe(checkout, env, {"services": services}, names)
    if not recipe.services:
        raise DeployError("invalid_recipe", f"{names[0]} has no services.")
    return recipe


def _service(written: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    return {
        **{key: written[key] for key in _USED if key in written},
        "environment": _environment(written.get("environment"), env),
        "deploy": {"labels": _texts(mapping(written.get("deploy")).get("labels"))},
    }


def all_processes(recipe: Recipe) -> bool:
    services = recipe.services
    return bool(services) and all(service.get(_KEY) for service in services.values())


def processes(recipe: Recipe, ports: Mapping[str, int], others: Mapping[str, str]) -> list[Process]:
    """Every service as a process. `ports`: each service's ${PORT}; `others`: further variables. Raises DeployError."""
    result = []
    for name, service in recipe.services.items():
        raw = service.get(_KEY)
        if not raw:
            raise DeployError(
                "invalid_recipe",
                f"The service {name} has no `{_KEY}`, so it cannot run without containers.",
                "Add one, or use the swarm deployer.",
            )
        wanted = raw.get("command") if isinstance(raw, dict) else raw
        env = {**recipe.env, **others, "PORT": str(ports[name])}
        try:
            words = shlex.split(wanted) if isinstance(wanted, str) else [str(word) for word in wanted or []]
            filling = Filling(env)
            command = [filling.fill(word) for word in words]
        except (ValueError, TypeError) as error:
            raise DeployError("invalid_recipe", f"{_KEY} of {name} cannot be read: {error}.") from error
        if not command:
            raise DeployError("invalid_recipe", f"{_KEY} of {name} has no command.")
        listens = any("${PORT" in word or word == "$PORT" for word in words)
        result.append(Process(name, command, mapping(service.get("environment")), listens))
    return result


def _read(checkout: Path, name: str, env: Mapping[str, str]) -> dict[str, Any]:
    inside(checkout, name)
    try:
        document, _ = safeyaml.load(text(checkout, name))
        filled = _fill(document, Filling(env))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DeployError("invalid_recipe", f"{name} cannot be read: {' '.join(str(error).split())[:300]}.") from error
    if not isinstance(filled, dict):
        raise DeployError("invalid_recipe", f"{name} is not a compose file.")
    return filled


def _fill(node: Any, filling: Filling) -> Any:
    """Expand variables. Keys starting with x- are skipped: `x-cc-ci-process` is expanded later, when the ports are known."""
    if isinstance(node, dict):
        return {str(key): value if str(key).startswith("x-") else _fill(value, filling) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, filling) for value in node]
    return filling.fill(node) if isinstance(node, str) else node


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        before = merged.get(key)
        if key in ("environment", "labels") and before is not None:
            merged[key] = {**_texts(before, None), **_texts(value, None)}
        else:
            merged[key] = _over(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _texts(value: Any, missing: str | None = "") -> dict[str, Any]:
    """Labels or an environment as a mapping, from a list of `key=value` or a mapping. `missing` replaces absent values."""
    if isinstance(value, list):
        value = {key: text if equals else None for key, equals, text in (str(item).partition("=") for item in value)}
    return {str(key): missing if text is None else _scalar(text) for key, text in mapping(value).items()}


def _environment(value: Any, env: Mapping[str, str]) -> dict[str, str]:
    """A service's environment. A name without a value gets the one from the app's `.env`, or is dropped."""
    named = {name: env.get(name) if text is None else text for name, text in _texts(value, None).items()}
    return {name: text for name, text in named.items() if text is not None}


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
