"""Whatever Docker's reader, or a stranger in its place, outputs: only what is on this file's own list is admitted.

The list is written down once more, plainly and without the code that is tested, and held to what is deployed in the end.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from infra.deployers.compose import admission, ports, render, stackfile
from infra.deployers.compose.recipe import Recipe
from infra.deployers.compose.render import PLACE
from infra.deployers.context import Bounds
from infra.deployers.errors import DeployError
from tests.infra.deployers.compose.reading import DOMAIN, STACK, write

pytestmark = pytest.mark.slow(1.4)

#: A document with everything that is admitted, as Docker prints it.
GOOD: dict[str, Any] = yaml.safe_load(f"""
version: "3.13"
x-note: {{a: [1, {{b: c}}]}}
services:
  app:
    image: x:1
    x-more: [a]
    build: {{context: {PLACE}}}
    command: [a, --b]
    entrypoint: [/run.sh]
    environment: {{A: "1", B: null, C: $x}}
    env_file: [settings.env]
    expose: ["80"]
    extra_hosts: ["a:127.0.0.1"]
    hostname: {STACK}-it
    user: "1000"
    working_dir: /x
    stop_signal: SIGINT
    stop_grace_period: 1m0s
    init: true
    tty: false
    read_only: true
    shm_size: "67108864"
    dns: [1.1.1.1]
    cap_drop: [ALL]
    tmpfs: [/run]
    labels: {{backupbot.backup: "true"}}
    logging: {{driver: json-file, options: {{max-size: 10m}}}}
    healthcheck: {{test: [CMD, "true"], interval: 5s, retries: 3, start_period: 1m0s, disable: false}}
    ulimits: {{nofile: 65536, nproc: {{soft: 1, hard: 2}}}}
    networks: {{proxy: {{aliases: [{STACK}_app]}}, internal: {{aliases: [db]}}, default: null}}
    ports: [{{mode: ingress, target: 22, published: 22, protocol: tcp}}, {{target: 81}}]
    configs: [{{source: conf, target: /c, uid: "1", mode: 365}}]
    secrets: [{{source: pw}}, {{source: file, target: f}}]
    volumes:
      - {{type: volume, source: data, target: /data, read_only: true, volume: {{nocopy: true}}}}
      - {{type: volume, target: /anonymous}}
      - {{type: tmpfs, target: /tmp, tmpfs: {{size: 1000, mode: 511}}}}
    deploy:
      mode: replicated
      replicas: 2
      endpoint_mode: vip
      labels: {{traefik.enable: "true", "traefik.http.routers.{STACK}.rule": "Host(`{DOMAIN}`)", "traefik.tcp.routers.x.rule": y}}
      update_config: {{parallelism: 1, delay: 1s, failure_action: rollback, max_failure_ratio: 0.5, order: start-first}}
      rollback_config: {{monitor: 1s}}
      resources: {{limits: {{cpus: "0.5", memory: "1000000", pids: 10}}, reservations: {{memory: "1000"}}}}
      restart_policy: {{condition: on-failure, delay: 1s, max_attempts: 3, window: 1s}}
      placement: {{constraints: [node.role == manager], preferences: [{{spread: x}}], max_replicas_per_node: 1}}
  db: {{image: "y:1"}}
networks: {{proxy: {{name: proxy, external: true}}, internal: {{internal: true}}, other: {{driver: overlay, name: {STACK}_o}}}}
volumes: {{data: {{}}, named: {{name: {STACK}_named, driver: local, labels: {{a: b}}}}}}
configs: {{conf: {{name: {STACK}_conf_v1, file: {PLACE}/conf.txt, template_driver: golang}}}}
secrets: {{pw: {{name: {STACK}_pw_v1, external: true}}, file: {{file: {PLACE}/conf.txt}}}}
""")

KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int,),
    "flag": (bool,),
    "size": (str, int),
    "share": (int, float),
    "maybe": (str, type(None)),
    "nothing": (type(None),),
}
#: What may be deployed under which keys. `*` is any key, `[]` an item of a list, braces stand for one of several.
LIST_IN_WORDS = """
text    services.*.{image,hostname,container_name,domainname,user,working_dir,stop_signal,restart,mac_address,stop_grace_period}
text    services.*.{command,entrypoint,dns,dns_search,extra_hosts,expose,links,depends_on,cap_drop,tmpfs}.[]
flag    services.*.{init,tty,stdin_open,read_only}
size    services.*.shm_size
maybe   services.*.{environment,labels,logging.options}.*
text    services.*.logging.driver
text    services.*.healthcheck.{test.[],interval,timeout,start_period,start_interval}
number  services.*.healthcheck.retries
flag    services.*.healthcheck.disable
number  services.*.ulimits.{*,*.soft,*.hard}
nothing services.*.networks.*
text    services.*.networks.*.aliases.[]
size    services.*.ports.[].{mode,target,published,protocol}
text    services.*.configs.[].{source,target,uid,gid}
text    services.*.secrets.[].{source,target,uid,gid}
number  services.*.{configs,secrets}.[].mode
text    services.*.volumes.[].{type,source,target,consistency}
flag    services.*.volumes.[].{read_only,volume.nocopy}
number  services.*.volumes.[].tmpfs.{size,mode}
text    services.*.deploy.{mode,endpoint_mode}
number  services.*.deploy.replicas
maybe   services.*.deploy.labels.*
text    services.*.deploy.update_config.{delay,failure_action,monitor,order}
text    services.*.deploy.rollback_config.{delay,failure_action,monitor,order}
number  services.*.deploy.{update_config,rollback_config}.parallelism
share   services.*.deploy.{update_config,rollback_config}.max_failure_ratio
text    services.*.deploy.resources.{limits,reservations}.cpus
size    services.*.deploy.resources.{limits,reservations}.memory
number  services.*.deploy.resources.limits.pids
text    services.*.deploy.restart_policy.{condition,delay,window}
number  services.*.deploy.restart_policy.max_attempts
text    services.*.deploy.placement.{constraints.[],preferences.[].spread}
number  services.*.deploy.placement.max_replicas_per_node
maybe   {networks,volumes,configs,secrets}.*.labels.*
text    {networks,volumes,configs,secrets}.*.name
text    {networks,volumes}.*.driver
flag    {networks.*.internal,networks.*.attachable,networks.*.external,volumes.*.external,configs.*.external,secrets.*.external}
text    {configs,secrets}.*.{file,template_driver}
"""


def _each_of(path: str) -> Iterator[str]:
    if not (braces := re.search(r"\{([^{}]*)\}", path)):
        yield path
        return
    for part in braces[1].split(","):
        yield from _each_of(path[: braces.start()] + part + path[braces.end() :])


LIST = {path: KINDS[kind] for kind, paths in map(str.split, LIST_IN_WORDS.strip().splitlines()) for path in _each_of(paths)}
#: Keys that a stranger gives names to.
FREE = re.compile(
    r"(services|networks|volumes|configs|secrets)|services\.\*\.(environment|labels|logging\.options|ulimits|networks|deploy\.labels)"
    r"|(networks|volumes|configs|secrets)\.\*\.labels"
)
OURS = {"cc-ci.run": "1"}
MARK = {"cc-ci.deployment": "2"}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a document that is no mapping or list, or an empty one, and under which keys."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            assert isinstance(key, str)
            yield from leaves(value, f"{path}.{'*' if FREE.fullmatch(path) else key}".lstrip("."))
    elif isinstance(node, list) and node:
        for value in node:
            yield from leaves(value, f"{path}.[]")
    else:
        yield path, node


def held_to_the_list(document: dict[str, Any], checkout: Path) -> None:
    assert document.keys() == {"services", "networks", "volumes", "configs", "secrets"}
    for path, value in leaves(document):
        empty = value in ({}, []) and any(known.startswith(f"{path}.") for known in LIST)
        assert empty or type(value) in LIST.get(path, ()), (path, value)
    for name, service in document["services"].items():
        for mount in service.get("volumes") or []:
            assert mount["type"] in ("volume", "tmpfs"), name
            if mount["type"] == "volume" and mount.get("source") is not None:
                volume = document["volumes"][mount["source"]]
                assert not volume.get("driver_opts") and not volume.get("external")
        for network in service.get("networks") or {}:
            assert network in document["networks"]
        for kind in ("configs", "secrets"):
            assert all(entry["source"] in document[kind] for entry in service.get(kind) or [])
        assert 0 <= (service.get("deploy", {}).get("replicas") or 0) <= 20
        logging = service.get("logging") or {}
        assert logging.get("driver") in (None, "json-file", "local", "none")
        assert not [option for option in logging.get("options") or {} if option.endswith(("-address", "-url", "-region"))]
        for labels, own in ((service["labels"], OURS), (service["deploy"]["labels"], OURS | MARK)):
            assert {key: text for key, text in labels.items() if key.strip().lower().startswith("cc-ci.")} == own
            assert not [key for key in labels if key.lower().strip().startswith(("com.docker.", "traefik.tcp"))]
            assert all(DOMAIN in rule for key, rule in labels.items() if key.lower().endswith(".rule") and "traefik" in key)
    for network in document["networks"].values():
        assert network.get("driver", "") in ("", "overlay") and not network.get("external")
    for kind in ("networks", "volumes", "configs", "secrets"):
        for definition in document[kind].values():
            assert str(definition.get("name") or f"{STACK}_").startswith(f"{STACK}_")
            if kind in ("configs", "secrets") and definition.get("file"):
                assert Path(definition["file"]).resolve() == checkout / "conf.txt"


WORDS = [
    *("/", "/etc", "..", "x/../../..", "~", "host", "proxy", "ALL", "bind", "npipe", "volume", "data", "conf", "pw", "external"),
    *("name", "driver", "driver_opts", "cc-ci.keep", "cc-ci.run", " CC-CI.run", "com.docker.stack.namespace", "x-a", "<<"),
    *("x-cluster-spec", "Privileged", "privileged", "cap_add", "$HOME", "${X}", STACK, f"{STACK}_x", f"{STACK}_cc-ci-front"),
    *(
        "cc-ci-front",
        f"{PLACE}/conf.txt",
        f"{PLACE}/../etc/passwd",
        "/etc/passwd",
        "traefik.http.routers.x.rule",
        "syslog",
        "true",
    ),
    *("traefik.tcp", "Host(`x`)", f"traefik.http.routers.{STACK}.rule", "syslog-address", "default", "null", "source", "type"),
    *("file", "content", "environment", "labels", "aliases", "hostname", "replicas", "include", "services", "label_file", "tty"),
    *("\ud800", "\0", "a=b", "", " ", "1", "C:\\x", "é:/x", "subpath", "propagation", "rshared", "nocopy", "settings.env"),
]
TEXTS = st.sampled_from(WORDS) | st.text(max_size=8)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 5000, 2**70, -1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of a document: the mapping or list, and the key or number in it."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield node, key
        yield from places(value)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """The good document with some values put elsewhere, replaced, renamed or added."""
    document = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(0, 3))):
        around, key = draw(st.sampled_from(list(places(document))))
        # A copy, since a value may be put into itself.
        value = draw(ANYTHING) if draw(st.booleans()) else copy.deepcopy(draw(st.sampled_from(list(places(document)))))
        if isinstance(value, tuple):
            value = value[0][value[1]]
        if isinstance(around, dict) and draw(st.booleans()):
            key = draw(TEXTS)
        around[key] = value
    return document


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return write(folder, "services: {}", **{"conf.txt": "x", "settings.env": "A=1", "labels.txt": "a=b"})


def deployed(checkout: Path, document: dict[str, Any]) -> dict[str, Any]:
    """What would be handed to Docker. Raises DeployError where it is not admitted."""
    recipe = Recipe(checkout, {"STACK_NAME": STACK, "DOMAIN": DOMAIN}, document)
    before = copy.deepcopy(document)
    admission.check(recipe)
    assert recipe.document == before
    published = ports.plan(recipe.services, recipe.web({80}), ())
    return stackfile.of_run(recipe, OURS, MARK, published, STACK, True, Bounds())


def test_the_good_document_is_admitted_and_on_the_list(checkout: Path) -> None:
    document = deployed(checkout, copy.deepcopy(GOOD))
    held_to_the_list(document, checkout)
    here = {path for path, _ in leaves(document)}
    left_out = {path for path in LIST if path not in here}
    assert len(left_out) < len(LIST) / 3, "the good document has most of what is on the list"


def check_one(checkout: Path, document: dict[str, Any]) -> None:
    try:
        result = deployed(checkout, document)
        text = stackfile.text(result)
    except DeployError as error:
        event(error.kind)
        return
    event("admitted")
    held_to_the_list(result, checkout)
    assert _undoubled(json.loads(text)) == result


def _undoubled(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _undoubled(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_undoubled(value) for value in node]
    return node.replace("$$", "$") if isinstance(node, str) else node


SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@settings(max_examples=300, suppress_health_check=SLOW)
@given(document=documents())
def test_what_is_admitted_is_on_the_list(document: dict[str, Any], checkout: Path) -> None:
    check_one(checkout, document)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, suppress_health_check=SLOW)
@given(document=documents())
def test_what_is_admitted_is_on_the_list_of_very_many(document: dict[str, Any], checkout: Path) -> None:
    check_one(checkout, document)


@settings(max_examples=300, suppress_health_check=SLOW)
@given(data=st.data())
def test_whatever_is_printed_is_read_as_plain_values_or_refused(data: st.DataObject) -> None:
    """The good document's text with pieces cut out and put in."""
    printed = yaml.safe_dump(GOOD, default_flow_style=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(printed)))
        end = start + data.draw(st.integers(0, 5))
        piece = data.draw(
            st.sampled_from(["&a ", "*a", "!!int ", "!!binary ", "? ", "[", "{", "- ", "<<: ", "---\n", "\t", "|2-\n", "\0"])
            | TEXTS
        )
        printed = printed[:start] + piece + printed[end:]
    try:
        document = render.parse(printed)
    except DeployError as error:
        assert error.kind == "invalid_recipe"
        return
    assert {type(value) for _, value in leaves(document)} <= {str, int, float, bool, type(None), dict, list}
