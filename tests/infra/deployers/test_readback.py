"""What Swarm has of a service compared with what was admitted: changed manually, and spec by spec."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose import stackfile
from infra.deployers.compose.recipe import Recipe
from infra.deployers.docker.api import inspect
from infra.deployers.errors import DeployError
from infra.deployers.swarm import readback
from infra.deployers.swarm.persistent import PersistentDeployer
from tests.docker import IMAGE, docker, need_swarm
from tests.infra.deployers.compose.reading import STACK, load, write

pytestmark = pytest.mark.slow(0.1)

FULL = """
services:
  app:
    image: x
    networks: {default: , own: {aliases: [it]}}
    volumes: ["data:/data", "data:/again:ro", "/anonymous", {type: tmpfs, target: /run}]
    ports: ["2222:22", "9000-9001:9000-9001/udp"]
    configs: [{source: conf, target: /conf}]
    secrets: [key]
    cap_drop: [ALL]
networks: {own: }
volumes: {data: }
configs: {conf: {file: conf.txt}}
secrets: {key: {external: true, name: "${STACK_NAME}_key_v1"}}
"""
NETWORKS = {"n1": f"{STACK}_default", "n2": f"{STACK}_own", "n3": "host"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load(write(tmp_path, FULL, **{"conf.txt": "x"}))


def spec() -> dict[str, Any]:
    """What Docker 20.10 says of the service, as far as it matters here."""
    return {
        "Name": f"{STACK}_app",
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "x",
                "Mounts": [
                    {"Type": "volume", "Source": f"{STACK}_data", "Target": "/data", "VolumeOptions": {"Labels": {"a": "b"}}},
                    {"Type": "volume", "Source": f"{STACK}_data", "Target": "/again", "ReadOnly": True},
                    {"Type": "volume", "Target": "/anonymous"},
                    {"Type": "tmpfs", "Target": "/run"},
                ],
                "Configs": [{"ConfigName": f"{STACK}_conf", "ConfigID": "c", "File": {"Name": "/conf"}}],
                "Secrets": [{"SecretName": f"{STACK}_key_v1", "SecretID": "s"}],
                "CapabilityDrop": ["ALL"],
                "Privileges": {"CredentialSpec": None, "SELinuxContext": None},
                "Isolation": "default",
            },
            "Networks": [{"Target": "n1", "Aliases": ["app"]}, {"Target": "n2", "Aliases": ["it", "app"]}],
        },
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [
                {"Protocol": "tcp", "TargetPort": 22, "PublishedPort": 2222, "PublishMode": "ingress"},
                {"Protocol": "udp", "TargetPort": 9000, "PublishedPort": 9000, "PublishMode": "ingress"},
                {"Protocol": "udp", "TargetPort": 9001, "PublishedPort": 9001, "PublishMode": "ingress"},
            ],
        },
    }


def said(document: dict[str, Any], found: dict[str, Any]) -> str:
    try:
        readback.check(document, STACK, [{"Spec": found}], NETWORKS)
    except DeployError as error:
        assert error.kind == "not_as_judged" and not error.recipes_fault
        return error.message
    return ""


def judged(recipe: Recipe) -> dict[str, Any]:
    return stackfile._labelled(stackfile._copy(recipe), {}, {}, {}) | {"services": recipe.services}


def test_what_was_judged_is_what_is_there(recipe: Recipe) -> None:
    assert said(judged(recipe), spec()) == ""


MORE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bind": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Mounts"].append({"Type": "bind", "Source": "/", "Target": "/host"}),
        "app: a bind mount of / at /host, writable",
    ),
    "other volume": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Mounts"][0].update(Source="other_data"),
        "a volume mount of other_data at /data",
    ),
    "writable": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Mounts"][1].pop("ReadOnly"),
        f"a volume mount of {STACK}_data at /again, writable",
    ),
    "volume driver": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Mounts"][0].update(
            VolumeOptions={"DriverConfig": {"Name": "local", "Options": {"type": "none", "o": "bind", "device": "/etc"}}}
        ),
        "a volume driver with options at /data",
    ),
    "port": (lambda s: s["EndpointSpec"]["Ports"][0].update(PublishedPort=3050), "the port 3050 for 22/tcp (ingress)"),
    "host port": (lambda s: s["EndpointSpec"]["Ports"][0].update(PublishMode="host"), "the port 2222 for 22/tcp (host)"),
    "network": (lambda s: s["TaskTemplate"]["Networks"].append({"Target": "n3"}), "the network host"),
    "unknown network": (lambda s: s["TaskTemplate"]["Networks"].append({"Target": "n9"}), "the network n9"),
    "old network": (lambda s: s.update(Networks=[{"Target": "n3"}]), "the network host"),
    "capability": (
        lambda s: s["TaskTemplate"]["ContainerSpec"].update(CapabilityAdd=["CAP_SYS_ADMIN"]),
        "the capability SYS_ADMIN",
    ),
    "config": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Configs"].append({"ConfigName": "theirs"}),
        "the config theirs",
    ),
    "secret": (
        lambda s: s["TaskTemplate"]["ContainerSpec"]["Secrets"].append({"SecretName": "theirs"}),
        "the secret theirs",
    ),
    "privileges": (
        lambda s: s["TaskTemplate"]["ContainerSpec"].update(Privileges={"SELinuxContext": {"Disable": True}}),
        "its own privileges",
    ),
    "seccomp": (
        lambda s: s["TaskTemplate"]["ContainerSpec"].update(Privileges={"Seccomp": {"Mode": "unconfined"}}),
        "its own privileges",
    ),
    "sysctl": (lambda s: s["TaskTemplate"]["ContainerSpec"].update(Sysctls={"kernel.msgmax": "1"}), "the sysctl kernel.msgmax=1"),
    "group": (lambda s: s["TaskTemplate"]["ContainerSpec"].update(Groups=["docker"]), "the group docker"),
    "priority": (lambda s: s["TaskTemplate"]["ContainerSpec"].update(OomScoreAdj=-1000), "the OOM score adjustment -1000"),
    "image": (lambda s: s["TaskTemplate"]["ContainerSpec"].update(Image="evil"), "the image evil"),
    "another service": (lambda s: s.update(Name=f"{STACK}_other"), "other: a volume mount of"),
    "runtime": (lambda s: s["TaskTemplate"].update(Runtime="plugin"), "an unknown setting: Runtime"),
    "new key": (lambda s: s["TaskTemplate"]["ContainerSpec"].update(Devices=["/dev/kvm"]), "an unknown setting: Devices"),
}


@pytest.mark.parametrize("what", MORE)
def test_whatever_is_there_beyond_it_is_named(what: str, recipe: Recipe) -> None:
    change, words = MORE[what]
    found = json.loads(json.dumps(spec()))
    change(found)
    assert words in said(judged(recipe), found)


# --- by hand, on the real Swarm


@pytest.mark.docker
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mount-add=type=bind,source=/etc,target=/host"], "app: a bind mount of /etc at /host, writable"),
        (["--publish-add=published=39123,target=1,mode=host"], "app: the port 39123 for 1/tcp (host)"),
        (["--cap-add=CAP_NET_ADMIN"], "app: the capability NET_ADMIN"),
    ],
)
def test_what_is_put_there_by_hand_ends_it_before_it_counts_as_up(
    options: list[str], words: str, deployer: Any, tmp_path: Path
) -> None:
    need_swarm()
    text = f"services: {{app: {{image: '{IMAGE}', command: [sleep, '1000']}}}}"
    app = deployer(write(tmp_path / "recipe", text))
    app.deploy()
    docker("service", "update", "--detach", *options, f"{app.stack}_app")
    with pytest.raises(DeployError, match=readback.BEGINS) as caught:
        app.settle()
    assert words in caught.value.message and not caught.value.recipes_fault
    with pytest.raises(DeployError, match=readback.BEGINS):
        app.state()
    assert app.teardown() == []


@pytest.mark.docker
def test_a_port_of_an_app_is_the_one_that_was_written(deployer: Any, tmp_path: Path) -> None:
    """`50:50` without quotes is the number 3050 to a reader of YAML 1.1, and was deployed as that."""
    need_swarm()
    text = f"services: {{app: {{image: '{IMAGE}', command: [sleep, '1000'], ports: [50:50], stop_grace_period: 0s}}}}"
    app = deployer(write(tmp_path / "recipe", text), PersistentDeployer, app="x", mark="1", ephemeral=False)
    app.context.app_stack = f"test-{app.context.run_id[:12]}"
    app.deploy()
    [service] = inspect("service", [f"{app.stack}_app"])
    [port] = service["Spec"]["EndpointSpec"]["Ports"]
    assert (port["PublishedPort"], port["TargetPort"]) == (50, 50)
    app.settle()
    docker("service", "update", "--detach", "--publish-rm=50", "--publish-add=3050:50", f"{app.stack}_app")
    with pytest.raises(DeployError, match="the port 3050 for 50/tcp"):
        app.settle()
