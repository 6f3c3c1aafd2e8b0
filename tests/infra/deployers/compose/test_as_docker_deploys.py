"""What the Swarm gets from us, held to what `docker stack deploy` makes of the same files with the same variables.

Both are deployed by the real docker command to a recorder in place of an Engine, and what would have been created is compared:
all of it, but for what DIFFERENCES takes out, and DIFFERENCES_OF_A_RUN for what strangers deploy. Those stand in
docs/deployers.md, sentence for sentence.
"""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose import admission, ports, render, stackfile
from infra.deployers.compose.recipe import Recipe, compose_files, read_environment
from infra.deployers.context import Bounds
from infra.deployers.docker.api import socket_path
from infra.deployers.errors import DeployError
from tests.docker import docker, need_swarm
from tests.infra.deployers import recorder
from tests.infra.deployers.compose import reading
from tests.infra.deployers.recorder import Bodies, Recorded, deployed

pytestmark = pytest.mark.slow(0.1)

ROOT = Path(__file__).resolve().parents[4]
FILES = ROOT / "tests" / "data" / "compose"
SHARED = ROOT.parent / "shared" / "cases"
STACK = reading.STACK

#: What the files of tests/data/compose may refer to.
ENV = {
    "STACK_NAME": STACK,
    "DOMAIN": reading.DOMAIN,
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
    "QUOTES": 'it\'s "quoted" `x`',
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

Change = Callable[[Mapping[str, Bodies]], None]


def _services(bodies: Mapping[str, Bodies]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each service, and what its containers are made of."""
    for service in bodies["services"].values():
        yield service, service["TaskTemplate"]["ContainerSpec"]


def _labels(node: Any) -> Iterator[dict[str, str]]:
    """All labels, wherever they are."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "Labels" and isinstance(value, dict):
            yield value
        elif isinstance(value, dict | list):
            yield from _labels(value)


def _drop_labels(bodies: Mapping[str, Bodies], pattern: str) -> None:
    for labels in _labels(bodies):
        for key in [key for key in labels if re.match(pattern, key, re.IGNORECASE)]:
            del labels[key]


def entries_once(bodies: Mapping[str, Bodies]) -> None:
    """A duplicate entry in a list (a port, a DNS server, a host, an alias) is passed on once."""
    for service, container in _services(bodies):
        holders = [(service["EndpointSpec"], "Ports"), (container, "Hosts")]
        holders += [(container.get("DNSConfig", {}), key) for key in ("Nameservers", "Search")]
        holders += [(network, "Aliases") for network in service["TaskTemplate"]["Networks"]]
        for holder, key in holders:
            if key in holder:
                holder[key] = [item for number, item in enumerate(holder[key]) if item not in holder[key][:number]]


def empty_lists(bodies: Mapping[str, Bodies]) -> None:
    """An empty `dns` or `dns_search`, and a volume's empty `driver_opts`, count as absent."""
    for _, container in _services(bodies):
        if not container.get("DNSConfig", True):
            del container["DNSConfig"]
        for mount in container.get("Mounts", ()):
            options = mount.get("VolumeOptions", {})
            if not options.get("DriverConfig", True):
                del options["DriverConfig"]


def line_breaks_before_blanks(bodies: Mapping[str, Bodies]) -> None:
    """A multi-line text that begins with an empty line and then a space loses the empty line."""
    for _, container in _services(bodies):
        container["Env"] = [re.sub("^([^=]*=)\n(?= .*\n)", r"\1", item) for item in container.get("Env", ())]
        for holder, key in ((container, "Args"), (container, "Command"), (container.get("Healthcheck", {}), "Test")):
            if key in holder:
                holder[key] = [re.sub("^\n(?= .*\n)", "", item) for item in holder[key]]
    for labels in _labels(bodies):
        for key, value in labels.items():
            labels[key] = re.sub("^\n(?= .*\n)", "", value)


def odd_hosts(bodies: Mapping[str, Bodies]) -> None:
    """A name in `extra_hosts` is cut at an equals sign, which no host name contains."""
    for _, container in _services(bodies):
        container["Hosts"] = [host for host in container.get("Hosts", ()) if "=" not in host]


def plain_ports(bodies: Mapping[str, Bodies]) -> None:
    """A port without a protocol or a mode gets Swarm's defaults: tcp and ingress."""
    for service, _ in _services(bodies):
        for port in service["EndpointSpec"].get("Ports", ()):
            port.setdefault("Protocol", "tcp")
            port.setdefault("PublishMode", "ingress")


def variables_of_app(bodies: Mapping[str, Bodies]) -> None:
    """The service `app` gets every variable of the environment that it does not set itself, as with abra."""
    for service, container in _services(bodies):
        if service["Name"] == f"{STACK}_app":
            container.pop("Env", None)


DIFFERENCES: list[Change] = [variables_of_app, plain_ports, entries_once, empty_lists, line_breaks_before_blanks, odd_hosts]


def our_labels(bodies: Mapping[str, Bodies]) -> None:
    """Everything carries the labels by which cc-ci recognises it, and each service a deployment number."""
    _drop_labels(bodies, r"cc-ci\.")


def published_numbers(bodies: Mapping[str, Bodies]) -> None:
    """Published ports lose their number, and Swarm assigns free ones in the same mode"""
    for service, _ in _services(bodies):
        for port in service["EndpointSpec"].get("Ports", ()):
            port.pop("PublishedPort", None)
        service["EndpointSpec"].get("Ports", []).sort(key=lambda port: json.dumps(port, sort_keys=True))
    entries_once(bodies)


def network_of_the_proxy(bodies: Mapping[str, Bodies]) -> None:
    """The external network `proxy` is replaced by the run's own network"""
    bodies["networks"].pop(f"{STACK}_proxy", None)
    for service, _ in _services(bodies):
        for network in service["TaskTemplate"]["Networks"]:
            if network["Target"] == f"{STACK}_proxy":
                network["Target"] = "proxy"
        service["TaskTemplate"]["Networks"].sort(key=lambda network: str(network["Target"]))


def network_of_the_routes(bodies: Mapping[str, Bodies]) -> None:
    """A service that was on it and has routes also joins the network `cc-ci-front`, which the proxy's container joins for the
    lifetime of the run: the label `traefik.docker.network` names that one, and a hostname that is not the run's is dropped."""
    bodies["networks"].pop(f"{STACK}_cc-ci-front", None)
    _drop_labels(bodies, r"traefik\.(?:docker|swarm)\.")
    for service, container in _services(bodies):
        attached = service["TaskTemplate"]["Networks"]
        service["TaskTemplate"]["Networks"] = [one for one in attached if one["Target"] != f"{STACK}_cc-ci-front"]
        container.pop("Hostname", None)


def routers_of_tcp_and_udp(bodies: Mapping[str, Bodies]) -> None:
    """TCP and UDP routers are dropped"""
    _drop_labels(bodies, r"traefik\.(?:tcp|udp)\.")


def certificates(bodies: Mapping[str, Bodies]) -> None:
    """A router's certresolver becomes plain `tls`"""
    _drop_labels(bodies, r"traefik\.\w+\.routers\.[^.]+\.tls(?:\.certresolver)?$")


def limits_of_the_machine(bodies: Mapping[str, Bodies]) -> None:
    """No service gets more than a run may have: memory, processors, processes, log size, one health check per second."""
    for service, container in _services(bodies):
        container["CapabilityDrop"] = sorted({*(container.get("CapabilityDrop") or []), "CAP_NET_RAW"})
        task = service["TaskTemplate"]
        task.pop("Resources", None)
        task.pop("LogDriver", None)
        check = container.get("Healthcheck") or {}
        for key in ("Interval", "StartInterval"):
            if 0 < check.get(key, 0) < 10**9:
                check[key] = 10**9


DIFFERENCES_OF_A_RUN: list[Change] = [
    limits_of_the_machine,
    our_labels,
    published_numbers,
    network_of_the_proxy,
    network_of_the_routes,
    routers_of_tcp_and_udp,
    certificates,
]

#: What Docker takes and we do not: file -> why.
WE_REFUSE = {
    "text-no-keys": "A variable or label whose name is empty or longer than 1000 characters is refused.",
    "text-long-name": "A variable or label whose name is empty or longer than 1000 characters is refused.",
}


# --- What is compared


@dataclass(frozen=True)
class Case:
    """Compose files as somebody would deploy them, and the variables that go with them."""

    folder: Path
    names: tuple[str, ...]
    env: Mapping[str, str]

    def __str__(self) -> str:
        return Path(self.names[0]).stem

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in self.names]


def cases(folder: Path) -> list[Case]:
    """Each file of a folder, with its overlays."""
    files = sorted(file.name for file in folder.glob("*.yml"))
    overlays = [name for name in files if re.search(r"\.over\d?\.yml$", name)]
    return [
        Case(folder, (name, *(over for over in overlays if over.startswith(f"{name.removesuffix('.yml')}.over"))), ENV)
        for name in files
        if name not in overlays
    ]


def recipes() -> list[Any]:
    found = sorted(path.parent for path in (ROOT / "tests" / "data" / "recipes").rglob("compose.yml"))
    if not SHARED.is_dir():
        return [*found, pytest.param(None, marks=pytest.mark.skip(reason="../shared/cases is not here"), id="shared")]
    return [*found, *sorted(SHARED.glob("*/head"))]


def read(case: Case) -> Recipe:
    """The recipe as a run reads it, but for the sandbox around Docker's reader, which takes ten times as long.

    Raises DeployError with Docker's words.
    """
    files = [f"--compose-file={recorder.quoted(file)}" for file in case.files]
    command = [recorder.docker(), "--config=/nonexistent", "--host=unix:///nonexistent", "stack", "config", *files]
    done = subprocess.run(command, env=dict(case.env), stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise DeployError("invalid_recipe", done.stderr.decode())
    document = render.parse(done.stdout.decode().replace(str(case.folder), render.PLACE))
    return Recipe(case.folder, case.env, document, case.names)


def handed_over(recipe: Recipe, folder: Path, of_run: bool = False) -> Recorded:
    """What the Swarm gets from us for one of the server's apps, or for a run."""
    if of_run:
        published = ports.plan(recipe.services, None, ())
        document = stackfile.of_run(recipe, {"cc-ci.run": "1"}, {"cc-ci.deployment": "2"}, published, STACK, True, Bounds())
    else:
        published = {name: ports.read(service.get("ports") or []) for name, service in recipe.services.items()}
        document = stackfile.of_app(recipe, {}, {}, published)
    file = folder / "stack.json"
    file.write_text(stackfile.text(document))
    return deployed([file], {}, STACK)  # an empty environment, as for us: see docker_cli.stack_deploy


def same(theirs: Recorded, ours: Recorded, differences: Sequence[Change]) -> None:
    assert not ours.code, ours.stderr
    for bodies in (theirs.bodies, ours.bodies):
        for change in (_in_order, *differences):
            change(bodies)
    assert list(_unequal(theirs.bodies, ours.bodies)) == []


def _in_order(bodies: Mapping[str, Bodies]) -> None:
    """Docker itself puts the places of one config or secret in any order."""
    for _, container in _services(bodies):
        for kind in ("Configs", "Secrets"):
            container.get(kind, []).sort(key=lambda item: json.dumps(item, sort_keys=True))


def _unequal(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """Where two trees differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from _unequal(theirs.get(key, "(nothing)"), ours.get(key, "(nothing)"), f"{path}.{key}")
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from _unequal(one, other, f"{path}[{number}]")
    elif theirs != ours or type(theirs) is not type(ours):
        yield f"{path}: from Docker {theirs!r}, from us {ours!r}"


#: What a run changes something about, by the files' names. (Each deployment takes its time.)
CHANGED_FOR_A_RUN = ("configs", "labels", "networks", "over", "ports", "secrets", "volumes")


@pytest.mark.parametrize("case", cases(FILES), ids=str)
def test_the_swarm_gets_from_us_what_it_gets_from_docker(case: Case, tmp_path: Path) -> None:
    reading.need_reader()
    theirs = deployed(case.files, case.env, STACK)
    assert not theirs.code, theirs.stderr
    assert theirs.services
    recipe = read(case)
    ours = handed_over(recipe, tmp_path)
    admitted = not any(admission.problems(recipe))
    if str(case) in WE_REFUSE:
        assert ours.code
        assert not admitted
        return
    same(theirs, ours, DIFFERENCES)
    if admitted and str(case).startswith(CHANGED_FOR_A_RUN):
        same(theirs, handed_over(recipe, tmp_path, of_run=True), [*DIFFERENCES, *DIFFERENCES_OF_A_RUN])


@pytest.mark.parametrize("folder", recipes(), ids=lambda folder: str(folder and folder.relative_to(ROOT.parent)))
def test_the_swarm_gets_a_recipe_as_from_docker(folder: Path, tmp_path: Path) -> None:
    """With the recipe's own variables."""
    reading.need_reader()
    env = read_environment(reading.context(folder), folder)[0].values
    case = Case(folder, tuple(compose_files(env)), env)
    theirs = deployed(case.files, env, STACK)
    try:
        recipe = read(case)
    except DeployError as error:
        assert theirs.code
        assert error.message == theirs.stderr
        return
    same(theirs, handed_over(recipe, tmp_path), DIFFERENCES)
    same(theirs, handed_over(recipe, tmp_path, of_run=True), [*DIFFERENCES, *DIFFERENCES_OF_A_RUN])


@pytest.mark.parametrize("name", ["matrix-synapse", "web"])
def test_a_run_reads_what_is_compared_here(name: str) -> None:
    recipe = reading.load(ROOT / "tests" / "data" / "recipes" / name)
    assert recipe.document == read(Case(recipe.checkout, tuple(recipe.names), recipe.env)).document


#: What Docker says before it refuses, of what it only ignores; and where its reader alone does not say what it refuses.
_IGNORED = re.compile(r"\AIgnoring unsupported options: .*\n\n")
_UNSUPPORTED = re.compile(r"\ACompose file contains unsupported options:.*\Z", re.DOTALL)


@pytest.mark.parametrize("case", cases(FILES / "refused"), ids=str)
def test_what_docker_refuses_is_refused_in_its_words(case: Case, tmp_path: Path) -> None:
    reading.need_reader()
    theirs = deployed(case.files, case.env, STACK)
    assert theirs.code
    assert not theirs.services
    expected = _UNSUPPORTED.sub("Configuration contains forbidden properties\n", _IGNORED.sub("", theirs.stderr))
    try:
        ours = handed_over(read(case), tmp_path)
    except DeployError as error:
        # What is wrong with a file of the checkout is said in our words.
        ours_to_say = re.search("The recipe has no file|outside the recipe", error.message) and str(case.folder) in expected
        assert ours_to_say or error.message.replace(render.PLACE, str(case.folder)) == expected
        return
    assert ours.code
    assert not ours.services
    assert _IGNORED.sub("", ours.stderr) == expected


def test_each_difference_is_written_down() -> None:
    text = " ".join((ROOT / "docs" / "deployers.md").read_text().split())
    _, _, section = text.partition("## Differences from `docker stack deploy` ")
    section = section.partition(" ## ")[0]
    sentences = [" ".join((change.__doc__ or "").split()) for change in (*DIFFERENCES, *DIFFERENCES_OF_A_RUN)]
    assert [sentence for sentence in (*sentences, *WE_REFUSE.values()) if sentence not in section] == []


# --- The recorder against the daemon

#: Nothing here asks for an image (there are no replicas), or for what a daemon refuses.
_REAL = (
    "caps command-text configs-long deploy-restart deploy-update dns-list environment-list healthcheck-shell hosts-list",
    "labels-deploy-list labels-of-everything logging networks-map networks-options ports-order secrets-long stop sysctls-map",
    "ulimits user volumes-driver volumes-short",
)


@pytest.mark.docker
@pytest.mark.parametrize("name", " ".join(_REAL).split())
def test_the_recorder_keeps_what_a_daemon_keeps(name: str, tmp_path: Path) -> None:
    need_swarm()
    (case,) = (case for case in cases(FILES) if str(case) == name)
    quiet = tmp_path / "quiet.yml"
    quiet.write_text("services: {app: {deploy: {replicas: 0}}}")
    stack = f"test-recorder-{uuid.uuid4().hex[:8]}"
    recorded = deployed([*case.files, quiet], ENV, stack)
    assert not recorded.code, recorded.stderr
    options = [f"--compose-file={recorder.quoted(file)}" for file in (*case.files, quiet)]
    command = [recorder.docker(), f"--host=unix://{socket_path()}", "stack", "deploy", "--resolve-image=never", *options, stack]
    try:
        done = subprocess.run(command, env=ENV, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        for kind, bodies in recorded.bodies.items():
            for key, body in bodies.items():
                (found,) = json.loads(docker(kind.removesuffix("s"), "inspect", key))
                assert list(_missing(body, found if kind == "networks" else found["Spec"])) == []
    finally:
        docker("stack", "rm", stack)


def _missing(recorded: Any, real: Any, path: str = "") -> Iterator[str]:
    """What was recorded and is not there. A daemon fills in what is left out, and has ids where there were names."""
    if isinstance(recorded, dict) and isinstance(real, dict):
        for key, value in recorded.items():
            if value and key not in ("ConfigID", "SecretID", "Data", "Target" if "Networks" in path else ""):
                yield from _missing(value, real.get(key), f"{path}.{key}")
    elif isinstance(recorded, list) and isinstance(real, list) and len(recorded) == len(real):
        for number, (one, other) in enumerate(zip(recorded, real, strict=True)):
            yield from _missing(one, other, f"{path}[{number}]")
    elif recorded != real:
        yield f"{path}: recorded {recorded!r}, the daemon has {real!r}"
