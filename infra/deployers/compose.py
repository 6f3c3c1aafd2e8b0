"""Reads a recipe's compose files and says what may not be deployed. Pure but for reading files of the checkout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.deployers import safeyaml
from infra.deployers.base import Context, DeployError
from infra.deployers.interpolate import Unset, interpolate

#: Keys whose value is no text: a filled-in variable is read as YAML again there, as compose does.
_TYPED = frozenset(
    [
        "replicas",
        "retries",
        "parallelism",
        "max_attempts",
        "external",
        "read_only",
        "init",
        "tty",
        "stdin_open",
        "disable",
        "attachable",
        "internal",
        "privileged",
        "max_replicas_per_node",
    ]
)
_BIGGEST_FILE = 1 << 20
_MOST_NODES = 50_000
_PORT_LABEL = re.compile(r"traefik\.http\.services\.[^.]+\.loadbalancer\.server\.port")
_EXPORT = re.compile(r"""^\s*export\s+([A-Z][A-Z0-9_]*_VERSION)=(["']?)([A-Za-z0-9._+-]*)\2\s*(?:#.*)?$""", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")
_LENGTH = re.compile(r"#.*\blength=(\d+)")


@dataclass(frozen=True)
class Secret:
    """A secret that the recipe expects to be there: its name in the swarm, its name in the file, its length."""

    name: str
    key: str
    length: int = 32


@dataclass(frozen=True)
class Process:
    """How a service runs without a container: `x-cc-ci-process`."""

    service: str
    command: list[str]
    environment: dict[str, str]
    listens: bool  #: the command asks for ${PORT}


@dataclass
class Recipe:
    """A recipe's compose files, filled in: one document for each file, as docker merges them itself."""

    checkout: Path
    env: dict[str, str]
    documents: list[tuple[str, dict[str, Any]]]
    lengths: dict[str, int] = field(default_factory=dict)

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """All services; where two files name one, the later file's keys come over the earlier's."""
        merged: dict[str, dict[str, Any]] = {}
        for _, document in self.documents:
            for name, service in _mapping(document.get("services")).items():
                merged[name] = _merge(merged.get(name, {}), _mapping(service))
        return merged

    @property
    def all_processes(self) -> bool:
        services = self.services
        return bool(services) and all(service.get("x-cc-ci-process") for service in services.values())

    @property
    def images(self) -> list[str]:
        return sorted({str(service["image"]) for service in self.services.values() if service.get("image")})

    def labels(self, service: str) -> dict[str, str]:
        return as_mapping(_mapping(self.services.get(service, {}).get("deploy")).get("labels"))

    def version(self) -> str:
        """The version label (`coop-cloud.<stack>.version`) of `app`, else of another service; empty without one."""
        key = f"coop-cloud.{self.env.get('STACK_NAME', '')}.version"
        names = sorted(self.services, key=lambda name: (name != "app", name))
        return next((v for name in names if (v := self.labels(name).get(key, ""))), "")

    def web(self, known: Collection[int]) -> tuple[str, int] | None:
        """The service and port that answer the web: by traefik's label, else a published port that is one of `known`.

        `app` goes first.
        """
        names = sorted(self.services, key=lambda name: (name != "app", name))
        for name in names:
            for key, value in self.labels(name).items():
                if _PORT_LABEL.fullmatch(key) and value.isdigit():
                    return name, int(value)
        for name in names:
            for port in self.services[name].get("ports") or []:
                target = str(port.get("target", "")) if isinstance(port, dict) else str(port).rpartition(":")[2]
                target = target.partition("/")[0]
                if target.isdigit() and int(target) in known:
                    return name, int(target)
        return None

    @property
    def volume_keys(self) -> dict[str, str]:
        """The volumes that have a name of their own in Docker: that name -> their name in the files."""
        sections = [_mapping(document.get("volumes")) for _, document in self.documents]
        return {
            external_name(key, definition) or str(_mapping(definition)["name"]): key
            for section in sections
            for key, definition in section.items()
            if external_name(key, definition) or _mapping(definition).get("name")
        }

    def secrets(self) -> list[Secret]:
        """The external secrets, which somebody has to create before a deployment."""
        found = []
        for _, document in self.documents:
            for key, secret in _mapping(document.get("secrets")).items():
                if name := external_name(key, secret):
                    found.append(Secret(name, key, self.lengths.get(f"SECRET_{key.upper()}_VERSION", 32)))
        return found

    def processes(self, ports: Mapping[str, int], others: Mapping[str, str]) -> list[Process]:
        """Every service as a process. `ports` gives each one's ${PORT}, `others` what else may be filled in."""
        result = []
        for name, service in self.services.items():
            raw = service.get("x-cc-ci-process")
            if not raw:
                raise DeployError(
                    "invalid_recipe",
                    f"The service {name} has no `x-cc-ci-process`, so it cannot run without containers.",
                    "Give it one, or use the deployer swarm.",
                )
            wanted = raw.get("command") if isinstance(raw, dict) else raw
            env = {**self.env, **others, "PORT": str(ports[name])}
            try:
                words = shlex.split(wanted) if isinstance(wanted, str) else [str(word) for word in wanted or []]
                command = [interpolate(word, env) for word in words]
            except (ValueError, TypeError) as error:
                raise DeployError("invalid_recipe", f"x-cc-ci-process of {name} cannot be read: {error}.") from error
            if not command:
                raise DeployError("invalid_recipe", f"x-cc-ci-process of {name} has no command.")
            listens = any("${PORT" in word or word == "$PORT" for word in words)
            result.append(Process(name, command, as_mapping(service.get("environment")), listens))
        return result


def environment(context: Context, checkout: Path | None = None) -> dict[str, str]:
    """What a recipe's files may refer to: its sample, the versions that abra.sh exports, the context's, and the run's own names.

    abra.sh is a program of strangers: its plain `export X_VERSION=v1` lines are read, nothing is run.
    """
    checkout = checkout or context.checkout
    env: dict[str, str] = {}
    for line in _env_text(checkout).splitlines():
        if match := _ASSIGNMENT.match(line):
            env[match[1]] = _unquote(match[2])
    for match in _EXPORT.finditer(_text(checkout, "abra.sh")):
        env[match[1]] = match[3]
    env.update(context.env)
    env.update(STACK_NAME=context.stack, DOMAIN=context.domain)
    if not context.app:  # no run asks for a certificate
        env["LETS_ENCRYPT_ENV"] = ""
    return env


def load(checkout: Path, env: Mapping[str, str]) -> Recipe:
    """Read compose.yml and the overlays that COMPOSE_FILE names. Raises DeployError invalid_recipe."""
    names = [name for name in env.get("COMPOSE_FILE", "").split(":") if name] or ["compose.yml"]
    documents = [(name, _document(checkout, name, env)) for name in names]
    lengths = {
        match[1]: int(length[1])
        for line in _env_text(checkout).splitlines()
        if (match := _ASSIGNMENT.match(line)) and (length := _LENGTH.search(line))
    }
    recipe = Recipe(checkout, dict(env), documents, lengths)
    if not recipe.services:
        raise DeployError("invalid_recipe", f"{names[0]} has no services.")
    return recipe


def inside(checkout: Path, name: str) -> Path:
    """The file `name` of the checkout, symlinks followed. Raises DeployError when it lies outside or is no file."""
    root = checkout.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or ".git" in path.relative_to(root).parts:
        raise DeployError("forbidden", f"{name} points out of the recipe.", "Keep the file inside the recipe.")
    if not path.is_file():
        raise DeployError("invalid_recipe", f"The recipe has no file {name}.")
    return path


def external_name(key: str, definition: Any) -> str:
    """The name in the swarm of an external config, secret, network or volume; empty for one that is not external."""
    definition = _mapping(definition)
    external = definition.get("external")
    if isinstance(external, dict):
        return str(external.get("name") or definition.get("name") or key)
    return str(definition.get("name") or key) if external else ""


def as_mapping(value: Any) -> dict[str, str]:
    """Labels and environments come as a list of `key=value` or as a mapping."""
    if isinstance(value, list):
        return {key: text for key, _, text in (str(item).partition("=") for item in value)}
    return {str(key): "" if text is None else _scalar(text) for key, text in _mapping(value).items()}


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named(value: Any) -> dict[str, Any]:
    """The networks of a service, which come as a list of names as well."""
    return {str(name): None for name in value} if isinstance(value, list) else _mapping(value)


def _key_of(kind: str, item: Any) -> str:
    """What makes two entries of a list the same one, so that a later file's comes over an earlier's, as in Docker's merging."""
    if kind in ("secrets", "configs"):
        return str(item.get("source", item)) if isinstance(item, dict) else str(item)
    if kind == "volumes":
        parts = str(item).split(":")
        return str(item.get("target", item)) if isinstance(item, dict) else parts[1] if len(parts) > 1 else parts[0]
    return repr(item)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        before = merged.get(key)
        if key in ("environment", "labels") and before is not None:
            merged[key] = {**as_mapping(before), **as_mapping(value)}
        elif isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _merge(before, value)
        elif key == "networks" and before and value:
            merged[key] = _merge(_named(before), _named(value))
        elif isinstance(before, list) and isinstance(value, list) and key not in ("command", "entrypoint", "test"):
            merged[key] = list({_key_of(key, item): item for item in before + value}.values())
        else:
            merged[key] = value
    return merged


def _document(checkout: Path, name: str, env: Mapping[str, str]) -> dict[str, Any]:
    path = inside(checkout, name)
    if path.stat().st_size > _BIGGEST_FILE:
        raise DeployError("invalid_recipe", f"{name} is bigger than a megabyte.")
    try:
        document, _ = safeyaml.load(path.read_text())
        filled = _Filler(env).fill(document)
    except (yaml.YAMLError, UnicodeDecodeError, Unset, RecursionError, ValueError) as error:
        raise DeployError("invalid_recipe", f"{name} cannot be read: {' '.join(str(error).split())[:300]}.") from error
    if not isinstance(filled, dict):
        raise DeployError("invalid_recipe", f"{name} is no compose file.")
    for service in _mapping(filled.get("services")).values():
        if isinstance(service, dict) and service.get("environment"):
            service["environment"] = _taken_over(service["environment"], env)
    return filled


def _taken_over(environment: Any, env: Mapping[str, str]) -> dict[str, str]:
    """A service's environment; a name without a value takes the one of the app's `.env`, or is left out."""
    if isinstance(environment, list):
        environment = {name: text if equals else None for name, equals, text in (str(i).partition("=") for i in environment)}
    given = {str(name): value for name, value in _mapping(environment).items()}
    named = {name: env.get(name) if value is None else _scalar(value) for name, value in given.items()}
    return {name: value for name, value in named.items() if value is not None}


class _Filler:
    """Fills variables into a document. Counts what it visits: aliases can make a small file huge."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._left = _MOST_NODES

    def fill(self, node: Any, key: str = "") -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it unfolds to too many nodes")
        if isinstance(node, dict):
            # A key that starts with x- is for tools: x-cc-ci-process is filled in later, when the ports are known.
            return {
                str(name): value if str(name).startswith("x-") else self.fill(value, str(name)) for name, value in node.items()
            }
        if isinstance(node, list):
            return [self.fill(value) for value in node]
        if isinstance(node, str) and "$" in node:
            text = interpolate(node, self._env)
            return yaml.safe_load(text) if key in _TYPED else text
        return node


def _env_text(checkout: Path) -> str:
    return _text(checkout, ".env") or _text(checkout, ".env.sample")


def _text(checkout: Path, name: str) -> str:
    if not (checkout / name).exists():
        return ""
    path = inside(checkout, name)
    if path.stat().st_size > _BIGGEST_FILE:
        raise DeployError("invalid_recipe", f"{name} is bigger than a megabyte.")
    return path.read_text(errors="replace")


def _unquote(raw: str) -> str:
    raw = raw.strip()
    if raw[:1] in ("'", '"') and (end := raw.find(raw[0], 1)) > 0:
        return raw[1:end]
    return re.split(r"\s#|^#", raw, maxsplit=1)[0].strip()


def files(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every file that the documents would have docker read: in which file and under which keys, and its path as written."""
    for name, document in recipe.documents:
        for kind in ("configs", "secrets"):
            for key, definition in _mapping(document.get(kind)).items():
                if file := _mapping(definition).get("file"):
                    yield name, (kind, key), str(file)
        for key, service in _mapping(document.get("services")).items():
            env_files = _mapping(service).get("env_file") or []
            for file in [env_files] if isinstance(env_files, str) else env_files:
                yield name, ("services", key, "env_file"), str(file)


class Lines:
    """Where things stand in a compose file that has been read before."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        self._root = yaml.compose(inside(recipe.checkout, name).read_text(), Loader=yaml.SafeLoader)
        self._env = recipe.env

    def of(self, path: Sequence[str], words: str) -> str:
        """`:<line>` of what lies under these keys; better, of the key or label beneath that the words begin with."""
        node, line = self._root, 1
        for key in (*path, words.partition(": ")[0]):
            found = _child(node, key, self._env)
            if not found:
                break
            line, node = found
        return f":{line}"


def _child(node: yaml.Node | None, name: str, env: Mapping[str, str]) -> tuple[int, yaml.Node] | None:
    """The last key of a mapping, or `key=value` of a list, with that name: its line, and the value beneath."""
    found = None
    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = node.value
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(item, item) for item in node.value]
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode):
            text = str(key.value)
            with suppress(Unset):  # a key of a mapping is not filled in, and may hold any dollar
                text = interpolate(text, env)
            if name in (str(key.value), text.partition("=")[0]):
                found = key.start_mark.line + 1, value
    return found
