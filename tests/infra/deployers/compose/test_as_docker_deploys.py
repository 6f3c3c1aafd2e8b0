"""What the Swarm gets from us, held to what `docker stack deploy` makes of the same files with the same variables.

Both are deployed by the real docker command to a recorder in place of an Engine, and what would have been created is compared:
all of it, but for what DIFFERENCES takes out. Those stand in docs/deployers.md, sentence for sentence.
"""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

from tests.docker import docker, need_swarm
from tests.infra.deployers import recorder
from tests.infra.deployers.recorder import Bodies, deployed

ROOT = Path(__file__).resolve().parents[4]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared" / "cases"
STACK = "app_example_com"

#: What the files of tests/data/compose may refer to.
ENV = {
    "STACK_NAME": STACK,
    "DOMAIN": "app.example.com",
    "TEXT": "some text",
    "EMPTY": "",
    "NUMBER": "3",
    "PORT": "8081",
    "PORT2": "8082",
    "SECONDS": "7",
    "FLOAT": "0.5",
    "YES": "yes",
    "TRUE": "true",
    "NULL": "null",
    "DATE": "2024-01-01",
    "FILE": "text.txt",
    "EQUALS": "left=right",
    "QUOTES": "it's \"quoted\" `x`",
    "QUOTES2": "it's",
    "LINES": "one\ntwo\n",
    "COLON": "a: b # c",
    "BRACE": "{x: [1]}",
    "DOLLAR": "5$ $TEXT ${TEXT} $$",
    "BACKSLASH": "a\\nb\\",
    "UNICODE": "naïve 😀 \u2028",
    "SPACES": "  both  ",
    "TAB": "\tone\ntwo",
    "NEWLINE": "\none",
    "HOME": "/home/of/the/recipe",
    "PATH": "/bin/of/the/recipe",
    "DOCKER_CONTEXT": "of-the-recipe",
}


# --- What is allowed to differ


def _services(bodies: Mapping[str, Bodies]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each service, and what its containers are made of."""
    for service in bodies["services"].values():
        yield service, service["TaskTemplate"]["ContainerSpec"]


def entries_once(bodies: Mapping[str, Bodies]) -> None:
    """Where a list holds an entry twice (a port, a DNS server, a host, an alias), the Swarm gets it once."""
    for service, container in _services(bodies):
        holders = [(service["EndpointSpec"], "Ports"), (container, "Hosts")]
        holders += [(container.get("DNSConfig", {}), key) for key in ("Nameservers", "Search")]
        holders += [(network, "Aliases") for network in service["TaskTemplate"]["Networks"]]
        for holder, key in holders:
            if key in holder:
                holder[key] = _once(holder[key])


def empty_lists(bodies: Mapping[str, Bodies]) -> None:
    """An empty `dns`, `dns_search` or `driver_opts` of a volume is the same as none."""
    for _, container in _services(bodies):
        if not container.get("DNSConfig", True):
            del container["DNSConfig"]
        for mount in container.get("Mounts", ()):
            options = mount.get("VolumeOptions", {})
            if not options.get("DriverConfig", True):
                del options["DriverConfig"]


def line_break_before_blanks(bodies: Mapping[str, Bodies]) -> None:
    """A text of several lines that begins with a line break and a blank loses that line break."""
    for _, container in _services(bodies):
        container["Env"] = [re.sub("^([^=]*=)\n(?= .*\n)", r"\1", item) for item in container.get("Env", ())]
        for holder, key in ((container, "Args"), (container, "Command"), (container.get("Healthcheck", {}), "Test")):
            if key in holder:
                holder[key] = [re.sub("^\n(?= .*\n)", "", item) for item in holder[key]]


DIFFERENCES: list[Callable[[Mapping[str, Bodies]], None]] = [entries_once, empty_lists, line_break_before_blanks]

#: What Docker takes and we do not: file -> why, in words that stand in docs/deployers.md.
WE_REFUSE = {
    "text-no-keys": "A variable or label with an empty name, or one longer than 1000 characters, is refused.",
    "text-long-name": "A variable or label with an empty name, or one longer than 1000 characters, is refused.",
    "hosts-odd": "A name with an equals sign in `extra_hosts` is refused.",
}


def sentences() -> list[str]:
    return [" ".join((difference.__doc__ or "").split()) for difference in DIFFERENCES] + list(dict.fromkeys(WE_REFUSE.values()))


def _once(items: Sequence[Any]) -> list[Any]:
    return [item for number, item in enumerate(items) if item not in items[:number]]


def _by_target(bodies: Mapping[str, Bodies]) -> None:
    """Docker itself puts the places of one config or secret in any order."""
    for _, container in _services(bodies):
        for kind in ("Configs", "Secrets"):
            container.get(kind, []).sort(key=lambda item: json.dumps(item, sort_keys=True))


# --- What is compared


@dataclass(frozen=True)
class Case:
    """Compose files as somebody would deploy them, and the variables that go with them."""

    name: str
    files: tuple[Path, ...]
    env: Mapping[str, str]

    def __str__(self) -> str:
        return self.name


def compose_files(folder: Path) -> list[Case]:
    """Each file of a folder, with its overlays."""
    overlays = sorted(folder.glob("*.over*.yml"))
    return [
        Case(file.stem, (file, *(over for over in overlays if over.name.startswith(f"{file.stem}.over"))), ENV)
        for file in sorted(folder.glob("*.yml"))
        if file not in overlays
    ]


def recipes() -> list[Any]:
    found = [_recipe(path.parent) for path in sorted((DATA / "recipes").rglob("compose.yml"))]
    if not SHARED.is_dir():
        return [*found, pytest.param(None, marks=pytest.mark.skip(reason="../shared/cases is not here"), id="shared")]
    return [*found, *(_recipe(folder) for folder in sorted(SHARED.glob("*/head")))]


def _recipe(folder: Path) -> Case:
    env = _sample(folder)
    names = env.get("COMPOSE_FILE", "compose.yml").split(":")
    return Case(str(folder.relative_to(ROOT.parent)), tuple(folder / name for name in names), env)


def _sample(folder: Path) -> dict[str, str]:
    """The variables of a recipe: its `.env.sample`, the versions of abra.sh, and the app's own names."""
    env = {"STACK_NAME": STACK, "DOMAIN": "app.example.com"}
    for name in (".env.sample", "abra.sh"):
        text = (folder / name).read_text() if (folder / name).exists() else ""
        for key, value in re.findall(r"^(?:export )?([A-Z_0-9]+)=((?:\"[^\"]*\"|'[^']*'|[^\s#\"'])*)", text, re.MULTILINE):
            env[key] = Template(value.strip("\"'")).safe_substitute(env)
    return {**env, "STACK_NAME": STACK, "DOMAIN": "app.example.com", "LETS_ENCRYPT_ENV": ""}


class Refused(Exception):
    """In Docker's words, or ours."""


def handed_over(case: Case, folder: Path) -> Path:
    """What we hand to `docker stack deploy`, as a file. Raises Refused.

    A stand-in for infra.deployers.compose.recipe.load and infra.deployers.compose.stackfile.document.
    """
    files = [f"--compose-file={recorder.quoted(file)}" for file in case.files]
    command = [recorder.docker(), "--config=/nonexistent", "--host=unix:///nonexistent", "stack", "config", *files]
    done = subprocess.run(command, env=dict(case.env), stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise Refused(done.stderr.decode())
    document = yaml.load(done.stdout.decode(), Loader=_Loader)  # noqa: S506
    document = {key: value for key, value in document.items() if not key.startswith("x-") and key != "version"}
    for service in document["services"].values():
        for key in [key for key in service if key.startswith("x-") or key in ("env_file", "build")]:
            del service[key]
        _for_a_second_reading(service)
    for kind in ("networks", "volumes", "configs", "secrets"):
        for definition in document.get(kind, {}).values():
            for key in [key for key in definition if key.startswith("x-")]:
                del definition[key]
    file = folder / "stack.json"
    file.write_text(_json(_doubled(document)))
    return file


_ONCE = "cap_add cap_drop dns dns_search extra_hosts tmpfs depends_on devices security_opt expose external_links links ports"


def _for_a_second_reading(service: dict[str, Any]) -> None:
    """What Docker prints and does not read again."""
    for ulimit in service.get("ulimits", {}).values():
        if isinstance(ulimit, dict):
            ulimit.setdefault("soft", 0)
            ulimit.setdefault("hard", 0)
    for host in service.get("extra_hosts", ()):
        if "=" in host.partition(":")[0]:
            raise Refused("extra_hosts: a name with an equals sign")
    if hosts := service.get("extra_hosts"):
        service["extra_hosts"] = [host.replace(":", "=", 1) for host in hosts]
    for key in _ONCE.split():
        if key in service:
            service[key] = _once(service[key])
    for network in service.get("networks", {}).values():
        if network and "aliases" in network:
            network["aliases"] = _once(network["aliases"])
    for mapping in (service.get("environment", {}), service.get("labels", {}), service.get("deploy", {}).get("labels", {})):
        if not all(0 < len(key) <= 1000 for key in mapping):
            raise Refused("an empty or very long name")


def _doubled(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _doubled(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_doubled(value) for value in node]
    return node.replace("$", "$$") if isinstance(node, str) else node


def _json(document: Any) -> str:
    """JSON that is YAML as well: no pairs of surrogates, and nothing that YAML takes for a line break or refuses raw."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", text)


class _Loader(yaml.SafeLoader):
    """Reads what Docker prints: quoted is text, and plain is a number, a boolean or null only where it looks just like it."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"-?(?:0|[1-9][0-9]{0,17})", list("-0123456789")),
    ("float", r"-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?", list("-0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float | str:
    # A text is printed plain if it is a number too big for Docker.
    return value if math.isfinite(value := float(node.value)) and len(node.value) < 30 else str(node.value)


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    # Docker's printer drops the line break that a text begins with. It gives the indentation if there was one, or a blank.
    value = str(node.value)
    mark = node.start_mark
    if node.style == "|" and mark.buffer[mark.pointer + 1].isdigit() and not (value[:1] == " " and "\n" in value):
        return f"\n{value}"
    return value


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def unequal(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two trees differ, in words."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            yield from unequal(left.get(key, "(nothing)"), right.get(key, "(nothing)"), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from unequal(one, other, f"{path}[{number}]")
    elif left != right or type(left) is not type(right):
        yield f"{path}: Docker {left!r}, we {right!r}"


@pytest.mark.parametrize("case", [*compose_files(DATA / "compose"), *recipes()], ids=str)
def test_the_swarm_is_given_what_docker_would_give_it(case: Case, tmp_path: Path) -> None:
    theirs = deployed(case.files, case.env, STACK)
    assert not theirs.code, theirs.stderr
    assert theirs.services
    if why := WE_REFUSE.get(case.name):
        with pytest.raises(Refused):
            handed_over(case, tmp_path)
        pytest.skip(why)
    # Nothing may be filled in a second time, so this one has no environment at all.
    ours = deployed([handed_over(case, tmp_path)], {}, STACK)
    assert not ours.code, ours.stderr
    for bodies in (theirs.bodies, ours.bodies):
        for change in (_by_target, *DIFFERENCES):
            change(bodies)
    assert list(unequal(theirs.bodies, ours.bodies)) == []


@pytest.mark.parametrize("case", compose_files(DATA / "compose" / "refused"), ids=str)
def test_what_docker_refuses_is_refused_in_its_words(case: Case, tmp_path: Path) -> None:
    theirs = deployed(case.files, case.env, STACK)
    assert theirs.code
    assert not theirs.services
    try:
        ours = deployed([handed_over(case, tmp_path)], {}, STACK)
        assert ours.code
        said = ours.stderr
    except Refused as error:
        said = str(error)
    # What Docker only ignores, `docker stack config` does not tell.
    expected = re.sub(r"\AIgnoring unsupported options: .*\n\n", "", theirs.stderr)
    said = re.sub(r"\AIgnoring unsupported options: .*\n\n", "", said)
    if expected.startswith("Compose file contains unsupported options"):
        expected = "Configuration contains forbidden properties\n"
    assert said == expected


def test_each_difference_is_written_down() -> None:
    text = " ".join((ROOT / "docs" / "deployers.md").read_text().split())
    _, _, section = text.partition("## What differs from what `docker stack deploy` makes ")
    section = section.partition(" ## ")[0]
    assert [sentence for sentence in sentences() if sentence not in section] == []


# --- The recorder against the daemon

#: Nothing here asks for an image: there are no replicas.
_REAL = (
    "caps command-text configs-long dns-list deploy-restart deploy-update durations environment-list hosts-list labels-deploy-list"
    " labels-of-everything logging networks-ipam networks-map networks-options ports-order secrets-long stop sysctls-map ulimits user"
    " volumes-driver volumes-short"
)


@pytest.mark.docker
@pytest.mark.parametrize("name", _REAL.split())
def test_the_recorder_keeps_what_a_daemon_keeps(name: str, tmp_path: Path) -> None:
    need_swarm()
    case = next(case for case in compose_files(DATA / "compose") if case.name == name)
    quiet = tmp_path / "quiet.yml"
    quiet.write_text("services: {app: {deploy: {replicas: 0}}}")
    stack = f"test-recorder-{uuid.uuid4().hex[:8]}"
    files = [*case.files, quiet]
    recorded = deployed(files, {**ENV, "STACK_NAME": stack}, stack)
    assert not recorded.code, recorded.stderr
    options = [f"--compose-file={recorder.quoted(file)}" for file in files]
    command = [recorder.docker(), "--host=unix:///var/run/docker.sock", "stack", "deploy", "--resolve-image=never", *options, stack]
    try:
        done = subprocess.run(command, env={**ENV, "STACK_NAME": stack}, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        for kind, bodies in recorded.bodies.items():
            for key, body in bodies.items():
                (found,) = json.loads(docker(kind.removesuffix("s"), "inspect", key))
                assert list(_missing(body, found if kind == "networks" else found["Spec"])) == []
    finally:
        docker("stack", "rm", stack)


def _missing(recorded: Any, real: Any, path: str = "") -> Iterator[str]:
    """What was recorded and is not there. A daemon fills in what is left out, and has ids where names are given."""
    if isinstance(recorded, dict) and isinstance(real, dict):
        for key, value in recorded.items():
            if value and key not in ("ConfigID", "SecretID", "Data", "Target" if "Networks" in path else ""):
                yield from _missing(value, real.get(key), f"{path}.{key}")
    elif isinstance(recorded, list) and isinstance(real, list) and len(recorded) == len(real):
        for number, (one, other) in enumerate(zip(recorded, real, strict=True)):
            yield from _missing(one, other, f"{path}[{number}]")
    elif recorded != real:
        yield f"{path}: recorded {recorded!r}, the daemon has {real!r}"
