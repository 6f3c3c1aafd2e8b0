"""What a recipe may not ask of the machine. A stranger's compose file is as hostile as a stranger's code. Pure.

An image of the recipe's choice runs in containers of its own stack: whatever reaches beyond that is refused before
anything is deployed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.deployers import compose
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


def check(recipe: compose.Recipe) -> None:
    """Raises DeployError `forbidden` with everything that the recipe may not ask for."""
    found = [*_documents(recipe)]
    for where, file in compose.files(recipe):
        try:
            compose.inside(recipe.checkout, file)
        except DeployError as error:
            found.append(f"{where}: {error.message}")
    if found:
        raise DeployError(
            "forbidden",
            "The recipe asks for what a run may not have: " + "; ".join(found[:10]) + ".",
            "Take it out, or put it into an overlay that tests do not use.",
        )


def _documents(recipe: compose.Recipe) -> Iterator[str]:
    stack = recipe.env.get("STACK_NAME", "")
    for file, document in recipe.documents:
        if "include" in document:
            yield f"{file}: include"
        for name, service in _items(document, "services"):
            for problem in _service(service):
                yield f"{file}: services.{name}: {problem}"
        for kind in ("volumes", "networks", "configs", "secrets"):
            for name, definition in _items(document, kind):
                for problem in _definition(kind, name, definition, stack):
                    yield f"{file}: {kind}.{name}: {problem}"


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
