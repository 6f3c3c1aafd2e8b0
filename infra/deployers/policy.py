"""What a recipe may not ask of the machine. A stranger's compose file is as hostile as a stranger's code. Pure.

An image of the recipe's choice runs in containers of its own stack: whatever reaches beyond that is refused before
anything is deployed, unless the enrolment allows that very thing for that repository.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
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
    "cgroupns_mode",
    "volumes_from",
    "credential_spec",
    "device_cgroup_rules",
    "uts",
    "runtime",
    "sysctls",
    "container_name",
    "group_add",
    "extends",
    "label_file",
    "gpus",
    "oom_score_adj",
    "oom_kill_disable",
    "provider",
    "use_api_socket",
]

#: Log drivers that write into the container's own log. With the others the daemon, on the host's network, talks to whom
#: the recipe says, or writes into the host's journal.
_LOG_DRIVERS = ("json-file", "local", "none")
#: Their options. Without a driver a daemon's default one gets them, which may be one that sends logs away.
_LOG_OPTIONS = (
    "max-size",
    "max-file",
    "compress",
    "labels",
    "labels-regex",
    "env",
    "env-regex",
    "tag",
    "mode",
    "max-buffer-size",
)
#: Labels by which we, and Docker's own tools, tell what belongs to whom. `cc-ci.keep` would keep the sweep away.
_LABELS_OF_OTHERS = ("cc-ci.", "com.docker.")
_MOST_REPLICAS = 20
_WINDOWS = re.compile(r"[A-Za-z]:\\")
_FIX = "Take it out, or put it into an overlay that tests do not use."


@dataclass(frozen=True)
class Problem:
    """Something wrong under the keys `path` of a file. `at` (the words, unless given) finds the line beneath `path`."""

    path: tuple[str, ...]
    words: str
    at: tuple[str, ...] = ()
    allowable: bool = True

    def __str__(self) -> str:
        """The words that an enrolment can allow: the same for every run, and without file and line."""
        return f"{'.'.join(self.path)}: {self.words}" if self.path else self.words

    def line(self, lines: compose.Lines) -> str:
        *above, last = (*self.path, *(self.at or (self.words,)))
        return lines.of(above, last)


def check(recipe: compose.Recipe, allow: Collection[str] = ()) -> None:
    """Raises DeployError `forbidden` with everything that the recipe may not ask for.

    `allow` holds what an enrolment allows, word for word as the error says it, such as `services.app: cap_add NET_ADMIN`.
    What a run shares with others is allowed to nobody: routes of the proxy, labels of ours, files beside the checkout.
    """
    allowed = {line.strip() for line in allow}
    found = [(file, problem) for file, problem in _problems(recipe) if not (problem.allowable and str(problem) in allowed)]
    if not found:
        return
    lines = {file: compose.Lines(recipe, file) for file in {file for file, _ in found[:10]}}
    said = [f"{file}{problem.line(lines[file])}: {problem}" for file, problem in found[:10]]
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
    allowable = list(dict.fromkeys(f"`{problem}`" for _, problem in found[:10] if problem.allowable))
    way = f" Or allow it for this repository at its enrolment, one a line: {', '.join(allowable)}." if allowable else ""
    raise DeployError("forbidden", f"The recipe asks for what a run may not have: {'; '.join(said)}{more}.", _FIX + way)


def _problems(recipe: compose.Recipe) -> Iterator[tuple[str, Problem]]:
    stack = recipe.env.get("STACK_NAME", "")
    shared = _shared_networks(recipe)
    for file, document in recipe.documents:
        for problem in _document(document, stack, shared):
            yield file, problem
    yield from _routes(recipe)
    for file, path, target in compose.files(recipe):
        try:
            compose.inside(recipe.checkout, target)
        except DeployError as error:
            yield file, Problem(path, error.message, allowable=False)


def _document(document: dict[str, Any], stack: str, shared: Collection[str]) -> Iterator[Problem]:
    if "include" in document:
        yield Problem((), "include", allowable=False)
    for name, service in _items(document, "services"):
        path = ("services", name)
        for key in _SERVICE_KEYS:
            for item in _each(service.get(key)):
                yield Problem(path, f"{key} {item}".strip(), (key, item))
        yield from _mounts(path, service)
        yield from _deploy(path, service)
        yield from _networks(path, service, stack, shared)
        yield from _labels_of_others((*path, "labels"), document)
        yield from _labels_of_others((*path, "deploy", "labels"), document)
    for kind in ("volumes", "networks", "configs", "secrets"):
        for name, definition in _items(document, kind):
            for words in _definition(kind, name, definition, stack):
                yield Problem((kind, name), words.replace(stack, "${STACK_NAME}") if stack else words)
            yield from _labels_of_others((kind, name, "labels"), document)


def _routes(recipe: compose.Recipe) -> Iterator[tuple[str, Problem]]:
    """What is wrong with the labels for the proxy, in each file, since a later one may only seem to replace an earlier one."""
    domain, stack = recipe.env.get("DOMAIN", ""), recipe.env.get("STACK_NAME", "")
    for name, service in recipe.services.items():
        for path in (("services", name, "deploy", "labels"), ("services", name, "labels")):
            for file, document in recipe.documents:
                for key, words in routes.problems(_labels(document, path), domain, stack):
                    yield file, Problem(path, f"{key}: {words}", allowable=False)
            for key, words in routes.unruled(_labels({"services": {name: service}}, path)):
                file = next(file for file, document in reversed(recipe.documents) if key in _labels(document, path))
                yield file, Problem(path, f"{key}: {words}", allowable=False)


def _labels(node: Any, path: tuple[str, ...]) -> dict[str, str]:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return compose.as_mapping(node)


def _labels_of_others(path: tuple[str, ...], document: dict[str, Any]) -> Iterator[Problem]:
    for key in _labels(document, path):
        if key.strip().lower().startswith(_LABELS_OF_OTHERS):
            yield Problem(path, f"{key}: such labels say what belongs to whom on this server", allowable=False)


def _items(document: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    section = document.get(key)
    if not isinstance(section, dict):
        return []
    return [(str(name), _mapping(value)) for name, value in section.items()]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _each(value: Any) -> Iterator[str]:
    """Each thing that a key asks for, by its name: a problem of its own, so that one can be allowed without the others."""
    if not value:
        return
    if value is True:
        yield ""
    elif isinstance(value, list):
        for item in value:
            yield str(item.get("source") or item.get("path") or item) if isinstance(item, dict) else str(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{name}={inner}"
    else:
        yield str(value)


def _mounts(path: tuple[str, ...], service: dict[str, Any]) -> Iterator[Problem]:
    for volume in _sequence(service.get("volumes")):
        if isinstance(volume, dict):
            source, kind = str(volume.get("source") or ""), volume.get("type", "volume")
            if kind not in ("volume", "tmpfs", "bind"):
                yield Problem(path, f"a mount of type {kind}", ("volumes",))
            elif kind == "bind" or source[:1] in ("/", ".", "~"):
                yield _bind(path, source, "volumes", source)
            continue
        source, colon, _ = str(volume).partition(":")
        if _WINDOWS.match(str(volume)) or (colon and (source[:1] in (".", "~", "\\") or "/" in source)):
            yield _bind(path, source, "volumes", str(volume))


def _bind(path: tuple[str, ...], source: str, *at: str) -> Problem:
    # What is not absolute means the folder of the file that docker reads: the run's own, with its sockets and logins.
    # (`~` is the home of whoever runs cc-ci.)
    allowable = source.startswith("/") and ".." not in source.split("/")
    words = f"a bind mount of {source or 'nothing'}"
    return Problem(path, words + (" (the docker socket)" if "docker.sock" in source else ""), at, allowable)


def _deploy(path: tuple[str, ...], service: dict[str, Any]) -> Iterator[Problem]:
    logging = _mapping(service.get("logging"))
    driver = logging.get("driver")
    if driver not in (None, *_LOG_DRIVERS):
        yield Problem(path, f"the log driver {driver}", ("logging", "driver"))
    for option in _mapping(logging.get("options")):
        if option not in _LOG_OPTIONS:
            yield Problem(path, f"the log option {option}", ("logging", "options", str(option)))
    deploy = _mapping(service.get("deploy"))
    replicas = deploy.get("replicas")
    if replicas is not None and not (str(replicas).isdecimal() and int(str(replicas)[:9]) <= _MOST_REPLICAS):
        yield Problem(path, f"{str(replicas)[:20]} replicas, more than {_MOST_REPLICAS}", ("deploy", "replicas"))
    reservations = _mapping(_mapping(deploy.get("resources")).get("reservations"))
    for key in ("devices", "generic_resources"):
        if reservations.get(key):
            yield Problem(path, f"deploy.resources.reservations.{key}", ("deploy", "resources", "reservations", key))


def _networks(path: tuple[str, ...], service: dict[str, Any], stack: str, shared: Collection[str]) -> Iterator[Problem]:
    for name, options in _mapping(service.get("networks")).items():
        options = _mapping(options)
        if options.get("driver_opts"):
            yield Problem(path, f"driver_opts on the network {name}", ("networks", name))
        for alias in _sequence(options.get("aliases")):
            # On a network that others share an alias is a way to be taken for somebody else.
            if name in shared and not (stack and str(alias).startswith(stack)):
                yield Problem(path, f"the alias {alias} on the shared network {name}", ("networks", name, "aliases", str(alias)))


def _shared_networks(recipe: compose.Recipe) -> set[str]:
    """The keys of external networks, in any of the files."""
    networks = [item for _, document in recipe.documents for item in _items(document, "networks")]
    return {name for name, definition in networks if compose.external_name(name, definition)}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _definition(kind: str, name: str, definition: dict[str, Any], stack: str) -> Iterator[str]:
    external = compose.external_name(name, definition)
    named = external or str(definition.get("name") or "")
    ours = bool(stack) and named.startswith(f"{stack}_")
    driver = definition.get("driver")
    if kind == "networks":
        if external and external != "proxy":
            yield f"the external network {external}"
        if driver not in (None, "overlay"):
            yield f"the network driver {driver}"
        if not external and named and not ours:
            yield f"the name {named}, which is not the stack's own"
        if definition.get("driver_opts"):
            yield "driver_opts"
        if definition.get("ipam"):
            yield "ipam: addresses of its own choice can take those of others"
        return
    if kind == "volumes":
        if external:
            yield f"the external volume {external}"
        if driver not in (None, "local"):
            yield f"the volume driver {driver}"
        if definition.get("driver_opts"):
            yield f"driver_opts, which can mount any folder: {_options(definition['driver_opts'])}"
        if definition.get("x-cluster-spec") or definition.get("spec"):
            yield "a cluster volume"
    if kind == "configs" and external:
        yield f"the external config {external}"
    if kind in ("configs", "secrets"):
        if definition.get("environment"):
            yield f"a {kind.removesuffix('s')} from the environment"
        if driver:
            yield f"the driver {driver}"
    if named and not ours and not (external and kind in ("volumes", "configs")):
        yield f"the name {named}, which is not the stack's own"


def _options(options: Any) -> str:
    return ", ".join(_each(options))
