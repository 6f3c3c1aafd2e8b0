"""What a recipe may not ask of the machine. A stranger's compose file is as hostile as a stranger's code. Pure.

An image of the recipe's choice runs in containers of its own stack: whatever reaches beyond that is refused before
anything is deployed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.deployers import compose, routes
from infra.deployers.base import DeployError

#: Keys of a service that open the container towards the host, whatever their value.
_SERVICE_KEYS = [
    "privileged",
    "cap_add",
    "devices",
    "network_mode",
    "pid",
    "ipc",
    "userns_mode",
    "security_opt",
    "cgroup_parent",
    "cgroup",
    "volumes_from",
    "credential_spec",
    "device_cgroup_rules",
    "uts",
    "runtime",
    "sysctls",
    "container_name",
    "group_add",
    "extends",
]


#: Where in a file something stands, key by key, and what is wrong with it.
Problem = tuple[tuple[str, ...], str]


def check(recipe: compose.Recipe) -> None:
    """Raises DeployError `forbidden` with everything that the recipe may not ask for."""
    found = [(file, problem) for file, document in recipe.documents for problem in _document(recipe, document)]
    found += _routes(recipe)
    for file, path, target in compose.files(recipe):
        try:
            compose.inside(recipe.checkout, target)
        except DeployError as error:
            found.append((file, (path, error.message)))
    if found:
        lines = {file: compose.Lines(recipe, file) for file in {file for file, _ in found[:10]}}
        said = [f"{file}{lines[file].of(path, words)}: {_name(path, words)}" for file, (path, words) in found[:10]]
        more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
        raise DeployError(
            "forbidden",
            f"The recipe asks for what a run may not have: {'; '.join(said)}{more}.",
            "Take it out, or put it into an overlay that tests do not use.",
        )


def _name(path: tuple[str, ...], words: str) -> str:
    return f"{'.'.join(path)}: {words}" if path else words


def _document(recipe: compose.Recipe, document: dict[str, Any]) -> Iterator[Problem]:
    stack = recipe.env.get("STACK_NAME", "")
    if "include" in document:
        yield (), "include"
    for name, service in _items(document, "services"):
        for problem in _service(service):
            yield ("services", name), problem
    for kind in ("volumes", "networks", "configs", "secrets"):
        for name, definition in _items(document, kind):
            for problem in _definition(kind, name, definition, stack):
                yield (kind, name), problem


def _routes(recipe: compose.Recipe) -> list[tuple[str, Problem]]:
    """What is wrong with the labels for the proxy, in each file, since a later one may only seem to replace an earlier one."""
    domain, stack = recipe.env.get("DOMAIN", ""), recipe.env.get("STACK_NAME", "")
    found: list[tuple[str, Problem]] = []
    for name, service in recipe.services.items():
        for path in (("services", name, "deploy", "labels"), ("services", name, "labels")):
            for file, document in recipe.documents:
                for key, words in routes.problems(_labels(document, path), domain, stack):
                    found.append((file, (path, f"{key}: {words}")))
            for key, words in routes.unruled(_labels({"services": {name: service}}, path)):
                file = next(file for file, document in reversed(recipe.documents) if key in _labels(document, path))
                found.append((file, (path, f"{key}: {words}")))
    return found


def _labels(node: Any, path: tuple[str, ...]) -> dict[str, str]:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return compose.as_mapping(node)


def _items(document: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    section = document.get(key)
    if not isinstance(section, dict):
        return []
    return [(str(name), value if isinstance(value, dict) else {}) for name, value in section.items()]


def _service(service: dict[str, Any]) -> Iterator[str]:
    for key in _SERVICE_KEYS:
        if service.get(key):
            yield key
    for volume in service.get("volumes") or []:
        if isinstance(volume, dict):
            if volume.get("type", "volume") not in ("volume", "tmpfs"):
                yield f"a mount of type {volume.get('type')}"
            elif "docker.sock" in str(volume.get("source", "")):
                yield "the docker socket"
            elif str(volume.get("source", ""))[:1] in ("/", ".", "~"):
                yield f"a bind mount of {volume['source']}"
        else:
            source, colon, _ = str(volume).partition(":")
            if colon and (source[:1] in ("/", ".", "~", "\\") or "/" in source):
                yield f"a bind mount of {source}"


def _definition(kind: str, name: str, definition: dict[str, Any], stack: str) -> Iterator[str]:
    external = compose.external_name(name, definition)
    named = external or str(definition.get("name") or "")
    ours = named.startswith(f"{stack}_")
    if kind == "networks":
        if external and external != "proxy":
            yield f"the external network {external}"
        if definition.get("driver") not in (None, "overlay"):
            yield f"the network driver {definition['driver']}"
        if not external and named and not ours:
            yield f"the name {named}, which is not the stack's own"
        if definition.get("driver_opts"):
            yield "driver_opts"
        return
    if kind == "volumes":
        if external:
            yield f"the external volume {external}"
        if definition.get("driver") not in (None, "local"):
            yield f"the volume driver {definition['driver']}"
        if definition.get("driver_opts"):
            yield "driver_opts, which can mount any folder"
    if kind == "configs" and external:
        yield f"the external config {external}"
    if kind == "secrets" and definition.get("environment"):
        yield "a secret from the environment"
    if definition.get("driver") and kind in ("configs", "secrets"):
        yield f"the driver {definition['driver']}"
    if named and not ours and not (external and kind in ("volumes", "configs")):
        yield f"the name {named}, which is not the stack's own"
