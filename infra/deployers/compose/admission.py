"""What a recipe may have on the machine: an allow-list for the document that Docker renders from its compose files.

Pure, except for finding line numbers and reading template files (nothing of a run writes into a checkout).

A stranger's compose file is as hostile as a stranger's code, and its images run in the stack's own containers. Every allowed key
and shape is listed here; everything else is refused before anything is deployed, unless the enrolment allows exactly that for the
repository. The document that is judged is the one that is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from infra.deployers.compose import lines, routes, templates
from infra.deployers.compose.files import inside
from infra.deployers.compose.recipe import Recipe, check_files, mapping, relative, texts
from infra.deployers.errors import DeployError

#: Log drivers that write into the container's own log. With the others the daemon, on the host's network, talks to whom
#: the recipe says, or writes into the host's journal.
_LOG_DRIVERS = ("json-file", "local", "none")
#: Their options. Without a driver a daemon's default one gets them, which may be one that sends logs away. (Not
#: `max-buffer-size`: so much is held in the daemon's own memory.)
_LOG_OPTIONS = frozenset(("max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode"))
#: Labels by which we, and Docker's own tools, tell what belongs to whom. `cc-ci.keep` would keep the sweep away.
_LABELS_OF_OTHERS = ("cc-ci.", "com.docker.")
#: How the names of a run's networks begin that it gets from us.
_OURS = "cc-ci-"
_MOST_REPLICAS = 20
#: What Docker takes for the names of services, networks, volumes, configs and secrets in a compose file, and of images.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,499}")
#: As Docker prints it: 1h0m0s, 1.5s, 20ms.
_DURATION = re.compile(r"(?=.)(?:[0-9]+h)?(?:[0-9]+m(?!s))?(?:[0-9]+(?:\.[0-9]+)?(?:s|ms|µs|ns))?")
_LONGEST_WORDS = 500
_MOST_PROBLEMS = 1000
_LONGEST_KEY = 1000  #: of a mapping; Docker reads no more than 1022 characters
#: Not those that give a process more of the processor than others (`nice`, `rtprio`, `rttime`).
_ULIMITS = frozenset(
    ("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "sigpending", "stack")
)
#: Begins `Problem.at` where what follows is the line itself, and not keys of a compose file.
_LINE = "the line"
_FIX = "Remove it, or move it to an overlay that tests do not use."


@dataclass(frozen=True)
class Problem:
    """Something that is not allowed under the keys `path`. `at` locates its line below them."""

    path: tuple[str, ...]
    message: str
    at: tuple[str, ...] = ()
    allowable: bool = True

    def __str__(self) -> str:
        """The text that an enrolment can allow: the same in every run, without file and line."""
        return f"{'.'.join(self.path)}: {self.message}" if self.path else self.message


def check(recipe: Recipe, allow: Collection[str] = (), withheld: Collection[str] = (), *, trusted: bool = True) -> None:
    """Raises DeployError `forbidden` with everything that the recipe may not have.

    `allow`: what the enrolment allows, exactly as the error prints it, such as `services.app: cap_add NET_ADMIN`.
    `withheld`: not allowed here, but for a trusted commit; only used in the error.
    What a run shares with others cannot be allowed: proxy routes, our labels, files outside the checkout.
    """
    allowed, missed = {line.strip() for line in allow}, {line.strip() for line in withheld}
    wrong = (problem for problem in problems(recipe) if not (problem.allowable and str(problem) in allowed))
    found = list(islice(wrong, _MOST_PROBLEMS))
    if not found:
        return
    places = lines.Places(recipe.checkout, recipe.names)
    said = [f"{_where(places, problem)}: {_shown(problem)}" for problem in found[:10]]
    more = f"; and {'at least ' * (len(found) == _MOST_PROBLEMS)}{len(found) - 10} more" if len(found) > 10 else ""
    # Each once, and only what is printed in full: it is to be copied.
    told = dict.fromkeys(f"`{p}`" for p in found if p.allowable and _shown(p) == str(p))
    allowable, held = ([line for line in told if (line[1:-1] in missed) is known][:10] for known in (False, True))
    way = f" Or allow it in this repository's enrolment, one per line: {', '.join(allowable)}." if allowable else ""
    if way and not trusted:
        way += " This is a stranger's commit, so the enrolment must also turn on allowances for strangers."
    if held:
        way += f" The enrolment allows {', '.join(held)}, but not for a stranger's commit such as this one."
    raise DeployError("forbidden", f"The recipe asks for what is not allowed in a run: {'; '.join(said)}{more}.", _FIX + way)


def _shown(problem: Problem) -> str:
    """On one printable line of limited length."""
    return _printable(str(problem)[:_LONGEST_WORDS])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _where(places: lines.Places, problem: Problem) -> str:
    if problem.at[:1] == (_LINE,):
        return _printable(problem.at[1])
    *above, last = (*problem.path, *(problem.at or ("",)))
    return places.of(above, last)


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything that is not allowed, in the document's order, with `${STACK_NAME}` as in the files."""
    stack = recipe.env.get("STACK_NAME", "")
    for problem in _problems(recipe, stack):
        words = problem.message.replace(stack, "${STACK_NAME}") if stack else problem.message
        at = tuple(part.replace(stack, "${STACK_NAME}") for part in problem.at) if stack else problem.at
        # What is not told in full cannot be allowed: it would stand for all that begins like it.
        allowable = problem.allowable and len(words) <= _LONGEST_WORDS
        yield Problem(problem.path, words[:_LONGEST_WORDS], at, allowable)


def _problems(recipe: Recipe, stack: str) -> Iterator[Problem]:
    domain = recipe.env.get("DOMAIN", "")
    document = recipe.document
    for key, value in document.items():
        if key not in ("version", "services", "networks", "volumes", "configs", "secrets") and not key.startswith("x-"):
            yield from _each((), key, value)
    declared = {kind: mapping(document.get(kind)) for kind in ("networks", "volumes", "configs", "secrets")}
    for kind, section in (("services", recipe.services), *declared.items()):
        for name in section:
            if not _NAME.fullmatch(name):
                yield Problem(
                    (kind,), f"the name {name!r}, which contains more than letters, digits, `.`, `_` and `-`", allowable=False
                )
    for name, service in recipe.services.items():
        yield from _service(("services", name), service, declared, stack)
        yield from _routes(("services", name, "deploy", "labels"), recipe.labels(name), domain, stack)
        yield from _routes(("services", name, "labels"), texts(service.get("labels")), domain, stack)
    for kind, judge in (("networks", _network), ("volumes", _volume), ("configs", _file), ("secrets", _file)):
        for name, definition in declared[kind].items():
            yield from judge((kind, name), mapping(definition), stack)
    if app := recipe.services.get("app"):  # which gets the recipe's variables beside its own (`stackfile`)
        own = mapping(app.get("environment"))
        added = {name: text for name, text in recipe.env.items() if name not in own}
        yield from _ENVIRONMENT(("services", "app"), "environment", added)
    for path, words in check_files(recipe):
        yield Problem(path, words, allowable=False)
    yield from _templates(recipe)


def _templates(recipe: Recipe) -> Iterator[Problem]:
    """Problems with the files that Docker expands as templates."""
    longest: dict[str, int] = {}
    for (kind, key, *_), name in recipe.files():
        if not mapping(mapping(recipe.document.get(kind)).get(key)).get("template_driver"):
            continue
        longest = longest or _longest(recipe)
        try:
            path = inside(recipe.checkout, name)
        except DeployError:  # which `check_files` tells
            continue
        with path.open(errors="replace") as file:
            text = file.read(templates.LONGEST + 1)
        try:
            templates.check(text, longest)
        except templates.TooMuch as error:
            yield Problem((kind, key), f"the template {name} with {error}", (_LINE, f"{name}:{error.line}"))


def _longest(recipe: Recipe) -> dict[str, int]:
    """The longest text that a template can look up with `env`, `secret` or `config`."""
    environments = [recipe.env, *(mapping(service.get("environment")) for service in recipe.services.values())]
    found = {
        "env": max(len(str(text)) for environment in environments for text in ("", *environment.values())),
        "secret": max([0, *(secret.length for secret in recipe.secrets), *map(len, recipe.secret_values.values())]),
        "config": 0,
    }
    for (kind, *_), name in recipe.files():
        if (one := kind.removesuffix("s")) in found:
            with suppress(DeployError):
                found[one] = max(found[one], inside(recipe.checkout, name).stat().st_size)
    return found


def _routes(path: tuple[str, ...], labels: Mapping[str, str], domain: str, stack: str) -> Iterator[Problem]:
    if variables := [key for key in labels if "$" in key and key.lower().lstrip().startswith("traefik")]:
        words = "variables in the keys of a mapping are not expanded; write the labels as a list"
        yield Problem(path, f"{variables[0]}: {words}", (variables[0],), allowable=False)
        return
    for key, words in (*routes.problems(labels, domain, stack), *routes.unruled(labels)):
        yield Problem(path, f"{key}: {words}", (key,), allowable=False)


# Shapes. A judge takes the path of the service, the key, its value, and gives what is not admitted.

Judge = Callable[[tuple[str, ...], str, Any], Iterator[Problem]]


def _each(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    """Refuses everything under this key: one problem per item, so that each can be allowed on its own."""
    if not value or value is True:
        yield Problem(path, key, (key,))
    elif isinstance(value, list):
        for item in value:
            yield Problem(path, f"{key} {item}", (key, str(item)))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield Problem(path, f"{key} {name}={inner}", (key, str(name)))
    else:
        yield Problem(path, f"{key} {value}", (key,))


def _is(*kinds: type) -> Judge:
    def judge(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
        # A boolean is a number to Python, and to nobody else.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            yield _shape(path, key)

    return judge


def _list_of_texts(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        yield _shape(path, key)


def _map_of_texts(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if not (isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values())):
        yield _shape(path, key)
    elif not all(0 < len(name) <= _LONGEST_KEY for name in value):
        yield Problem(path, f"a name in {key} that is empty or longer than {_LONGEST_KEY} characters", (key,), allowable=False)


def _filled_in(judge: Judge) -> Judge:
    """The same judge for values whose texts Docker expands as templates."""

    def both(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
        yield from judge(path, key, value)
        for name, text in (value if isinstance(value, dict) else {"": value}).items():
            try:
                templates.check(text if isinstance(text, str) else "", {})
            except templates.TooMuch as error:
                shown = f"{key} {name}".rstrip()
                yield Problem(path, f"{shown}={text}, a template with {error}", (key, *([name] if name else [])))

    return both


def _shape(path: tuple[str, ...], key: str) -> Problem:
    return Problem(path, f"{key} in an unsupported form", (key,), allowable=False)


def _mapping_of(known: Mapping[str, Judge]) -> Judge:
    """A mapping with only these keys."""

    def judge(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield _shape(path, key)
            return
        for name, inner in value.items():
            full = f"{key}.{name}"
            yield from (known[name](path, full, inner) if name in known else _each(path, full, inner))

    return judge


def _list_of(judge: Judge) -> Judge:
    def each(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
        if not isinstance(value, list):
            yield _shape(path, key)
            return
        for item in value:
            yield from judge(path, key, item)

    return each


def _one_of(*allowed: Any) -> Judge:
    def judge(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
        if value not in allowed:
            yield Problem(path, f"{key} {value}", (key,))

    return judge


_text, _number, _flag = _is(str), _is(int), _is(bool)
_size = _is(str, int)


def _duration(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if not (isinstance(value, str) and _DURATION.fullmatch(value)):
        yield _shape(path, key)


def _image(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if not (isinstance(value, str) and _IMAGE.fullmatch(value)):
        yield Problem(path, f"an invalid image name: {value!r}", (key,), allowable=False)


def _labels(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    yield from _map_of_texts(path, key, value)
    for name in mapping(value):
        if name.strip().lower().startswith(_LABELS_OF_OTHERS):
            words = f"{name}: labels with this prefix are reserved for marking ownership on this server"
            yield Problem((*path, *key.split(".")), words, (name,), allowable=False)


def _replicas(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    yield from _number(path, key, value)
    if isinstance(value, int) and not 0 <= value <= _MOST_REPLICAS:
        yield Problem(path, f"{str(value)[:20]} replicas, more than {_MOST_REPLICAS}", ("deploy", "replicas"))


def _log_driver(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if value not in _LOG_DRIVERS:
        yield Problem(path, f"the log driver {value}", ("logging", "driver"))


def _log_options(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    yield from _map_of_texts(path, key, value)
    for option in mapping(value):
        if option not in _LOG_OPTIONS:
            yield Problem(path, f"the log option {option}", ("logging", "options", str(option)))


def _ulimits(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield _shape(path, key)
    for name, limit in mapping(value).items():
        if name not in _ULIMITS:
            yield Problem(path, f"ulimits {name}", ("ulimits", name))
        else:
            yield from (_LIMIT if isinstance(limit, dict) else _number)(path, f"{key}.{name}", limit)


_LIMIT = _mapping_of({"soft": _number, "hard": _number})
_UPDATE = _mapping_of(
    {
        "parallelism": _number,
        "delay": _duration,
        "failure_action": _text,
        "monitor": _duration,
        "max_failure_ratio": _is(float, int),
        "order": _text,
    }
)
_HEALTHCHECK = _mapping_of(
    {
        "test": _list_of_texts,
        "interval": _duration,
        "timeout": _duration,
        "start_period": _duration,
        "start_interval": _duration,
        "retries": _number,
        "disable": _flag,
    }
)
_PORTS = _list_of(_mapping_of({"mode": _text, "target": _number, "published": _number, "protocol": _text}))
_DEPLOY = _mapping_of(
    {
        "mode": _text,
        "replicas": _replicas,
        "endpoint_mode": _text,
        "labels": _labels,
        "update_config": _UPDATE,
        "rollback_config": _UPDATE,
        "resources": _mapping_of(
            {
                "limits": _mapping_of({"cpus": _text, "memory": _size, "pids": _number}),
                "reservations": _mapping_of({"cpus": _text, "memory": _size}),
            }
        ),
        "restart_policy": _mapping_of({"condition": _text, "delay": _duration, "max_attempts": _number, "window": _duration}),
        "placement": _mapping_of(
            {
                "constraints": _list_of_texts,
                "preferences": _list_of(_mapping_of({"spread": _text})),
                "max_replicas_per_node": _number,
            }
        ),
    }
)
_ENVIRONMENT = _filled_in(_map_of_texts)
_LOGGING = _mapping_of({"driver": _log_driver, "options": _log_options})

#: Every key of a service that is admitted, with its shape. Those that need the other sections are judged in `_service`.
_SERVICE: Mapping[str, Judge] = {
    "image": _image,
    "hostname": _filled_in(_text),
    **dict.fromkeys(("domainname", "user", "working_dir", "stop_signal", "restart", "mac_address"), _text),
    "container_name": _text,  # which `docker stack` passes over
    "security_opt": _list_of(_one_of("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true")),  # this one too
    **dict.fromkeys(
        ("command", "entrypoint", "dns", "dns_search", "extra_hosts", "expose", "links", "depends_on"), _list_of_texts
    ),
    **dict.fromkeys(("cap_drop", "tmpfs", "env_file"), _list_of_texts),
    **dict.fromkeys(("init", "tty", "stdin_open", "read_only"), _flag),
    "environment": _ENVIRONMENT,
    "stop_grace_period": _duration,
    "shm_size": _size,
    "labels": _labels,
    "logging": _LOGGING,
    "healthcheck": _HEALTHCHECK,
    "deploy": _DEPLOY,
    "ulimits": _ulimits,
    "ports": _PORTS,
}
#: Not deployed, like what begins with `x-`, but for one: an image is built elsewhere.
_PASSED_OVER = ("build",)
_CLUSTER = "x-cluster-spec"


def _service(path: tuple[str, ...], service: Mapping[str, Any], declared: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    for key, value in service.items():
        if key in _PASSED_OVER or (key.startswith("x-") and key != _CLUSTER):
            continue
        if key == "networks":
            yield from _attachments(path, value, declared[key], stack)
        elif key == "volumes":
            yield from _list_of(_filled_in(partial(_mount, declared[key])))(path, key, value)
        elif key in ("configs", "secrets"):
            yield from _list_of(partial(_used, declared[key]))(path, key, value)
        elif judge := _SERVICE.get(key):
            yield from judge(path, key, value)
        else:
            yield from _each(path, key, value)


_TEXTS = ("type", "target", "consistency")
_MOUNTS = {
    kind: _mapping_of({**dict.fromkeys(keys, _text), "read_only": _flag, kind: _mapping_of(options)})
    for kind, keys, options in (
        ("volume", (*_TEXTS, "source"), {"nocopy": _flag}),
        ("tmpfs", _TEXTS, {"size": _number, "mode": _number}),
        ("bind", (*_TEXTS, "source"), {"propagation": _one_of("", "rprivate", "private")}),
    )
}
_FILE_MOUNT = _mapping_of({**dict.fromkeys(("source", "target", "uid", "gid"), _text), "mode": _number})


def _mount(declared: Mapping[str, Any], path: tuple[str, ...], key: str, mount: Any) -> Iterator[Problem]:
    kind, source = mapping(mount).get("type"), mapping(mount).get("source")
    if kind == "volume" and source is not None and str(source) not in declared:
        yield Problem(path, f"a mount of {source}, which is not a volume of the recipe", (key, str(source)), allowable=False)
    if kind == "bind":
        yield _bind(path, str(source or ""))
    if judge := _MOUNTS.get(str(kind)):
        yield from judge(path, key, mount)
    else:
        yield Problem(path, f"a mount of type {kind}", (key,))


def _bind(path: tuple[str, ...], source: str) -> Problem:
    # What lies in the checkout is the folder of the run itself, with its sockets and logins above it.
    inner = relative(source)
    allowable = source.startswith("/") and inner == source and ".." not in source.split("/")
    shown = inner if inner == source or inner in (".", "..") or inner.startswith("../") else f"./{inner}"
    words = f"a bind mount of {shown or 'nothing'}"
    return Problem(path, words + (" (the docker socket)" if "docker.sock" in source else ""), ("volumes", shown), allowable)


def _attachments(path: tuple[str, ...], value: Any, declared: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield _shape(path, "networks")
    for name, options in mapping(value).items():
        if name not in declared and name != "default":
            yield Problem(path, f"the network {name}, which the recipe does not declare", ("networks", name), allowable=False)
        if options is not None and not isinstance(options, dict):
            yield _shape(path, f"networks.{name}")
        for key in mapping(options):
            if key != "aliases":
                yield Problem(path, f"{key} on the network {name}", ("networks", name, key))
        aliases = mapping(options).get("aliases", [])
        yield from _list_of_texts(path, f"networks.{name}.aliases", aliases)
        # On a network that others share an alias is a way to be taken for somebody else.
        for alias in aliases if isinstance(aliases, list) and _external(declared.get(name)) else []:
            if not stack or not str(alias).startswith(stack):
                at = ("networks", name, "aliases", str(alias))
                yield Problem(path, f"the alias {alias} on the shared network {name}", at)


def _external(definition: Any) -> bool:
    return mapping(definition).get("external") is True


def _used(declared: Mapping[str, Any], path: tuple[str, ...], key: str, entry: Any) -> Iterator[Problem]:
    yield from _FILE_MOUNT(path, key, entry)
    if str(source := mapping(entry).get("source")) not in declared:
        words = f"the {key.removesuffix('s')} {source}, which the recipe does not declare"
        yield Problem(path, words, (key, str(source)), allowable=False)


def _own_name(path: tuple[str, ...], name: Any, stack: str) -> Iterator[Problem]:
    if name is not None and not (stack and re.fullmatch(rf"{re.escape(stack)}_[A-Za-z0-9_.-]+", str(name))):
        yield Problem(path, f"the name {name}, which is not the stack's own", ("name",))


def _known(path: tuple[str, ...], definition: Mapping[str, Any], known: Mapping[str, Judge]) -> Iterator[Problem]:
    for key, value in definition.items():
        if key in known:
            yield from known[key](path, key, value)
        elif key == _CLUSTER:
            yield Problem(path, "a cluster volume", (key,))
        elif not key.startswith("x-"):
            yield from _each(path, key, value)


def _any(path: tuple[str, ...], key: str, value: Any) -> Iterator[Problem]:
    yield from ()


def _network(path: tuple[str, ...], definition: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    name = definition.get("name")
    if _external(definition):
        if (name or path[-1]) != "proxy":
            yield Problem(path, f"the external network {name or path[-1]}", ("external",))
    else:
        yield from _own_name(path, name, stack)
    if path[-1].startswith(_OURS) or str(name or "").startswith(f"{stack}_{_OURS}"):
        yield Problem(path, f"a name that begins with {_OURS}, which is reserved for the server", allowable=False)
    if definition.get("driver", "") not in ("", "overlay"):
        yield Problem(path, f"the network driver {definition['driver']}", ("driver",))
    if "driver_opts" in definition:
        yield Problem(path, "driver_opts", ("driver_opts",))
    if "ipam" in definition:
        yield Problem(path, "ipam: addresses that the recipe chooses may conflict with those of others", ("ipam",))
    known = {"name": _text, "driver": _text, "driver_opts": _any, "ipam": _any, "labels": _labels}
    yield from _known(path, definition, {**known, **dict.fromkeys(("external", "internal", "attachable"), _flag)})


def _volume(path: tuple[str, ...], definition: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    name = definition.get("name")
    if _external(definition):
        yield Problem(path, f"the external volume {name or path[-1]}", ("external",))
    else:
        yield from _own_name(path, name, stack)
    if definition.get("driver", "") not in ("", "local"):
        yield Problem(path, f"the volume driver {definition['driver']}", ("driver",))
    if options := mapping(definition.get("driver_opts")):
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        yield Problem(path, f"driver_opts, which can mount any folder: {listed}", ("driver_opts",))
    filled = {"name": _filled_in(_text), "driver_opts": _filled_in(_map_of_texts), "labels": _filled_in(_labels)}
    yield from _known(path, definition, {**filled, "driver": _text, "external": _flag})


def _file(path: tuple[str, ...], definition: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    """A config or a secret: a file of the recipe, or for a secret one that is created for the run."""
    kind, name = path[0].removesuffix("s"), definition.get("name")
    if _external(definition) and kind == "config":
        yield Problem(path, f"the external config {name or path[-1]}", ("external",))
    else:
        yield from _own_name(path, (name or path[-1]) if _external(definition) else name, stack)
    if "driver" in definition:
        yield Problem(path, f"the driver {definition['driver']}", ("driver",))
    known = {"name": _text, "driver": _any, "external": _flag, "file": _text, "labels": _labels}
    yield from _known(path, definition, {**known, "template_driver": _one_of("", "golang")})
