"""A service that fails says in words what Swarm or Docker said: by their own phrases, and on the real thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers import settling, words
from infra.deployers.base import Address, Answer, Context, DeployError
from tests.docker import IMAGE, need_swarm

Make = Callable[..., Any]
LIMITED = {"TaskTemplate": {"Resources": {"Limits": {"MemoryBytes": 16 << 20}}}}


def recipe(folder: Path, **service: Any) -> Path:
    """A recipe with one service `app`, started anew at once."""
    deploy = {"restart_policy": {"delay": "0s"}, **service.pop("deploy", {})}
    app = {"image": IMAGE, "stop_grace_period": "100ms", "command": ["sleep", "1000"], "deploy": deploy, **service}
    folder.mkdir()
    (folder / "compose.yml").write_text(yaml.safe_dump({"version": "3.8", "services": {"app": app}}))
    return folder


@pytest.mark.parametrize(
    ("error", "spec", "kind", "said"),
    [
        ("No such image: x:1", {}, "image_missing", "The image of app is missing: No such image: x:1."),
        (
            "starting container failed: driver failed programming external connectivity on endpoint a (b): Bind for 0.0.0.0:25"
            " failed: port is already allocated",
            {},
            "port_taken",
            "A port of app is taken on this machine: starting",
        ),
        (
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
            {},
            "tool_failed",
            "no range of addresses left",
        ),
        ("all predefined address pools have been fully subnetted", {}, "tool_failed", "no range of addresses left"),
        ("non-zero exit (137)", LIMITED, "out_of_memory", "it wanted more than its limit of 16 MB"),
        (
            "starting container failed: OCI runtime create failed: container_linux.go:380: starting container process caused:"
            ' exec: "serve": executable file not found in $PATH: unknown',
            {},
            "exits",
            "The service app cannot be started: its command 'serve' is not in its image.",
        ),
        (
            'failed to create task: exec: "/entry.sh": permission denied: unknown',
            {},
            "exits",
            "its command '/entry.sh' may not be run",
        ),
    ],
)
def test_a_failed_task(error: str, spec: dict[str, Any], kind: str, said: str) -> None:
    trouble = words.failure("app", error, spec)
    assert trouble
    assert trouble.kind == kind
    assert said in trouble.message
    assert trouble.fix


@pytest.mark.parametrize(
    ("error", "spec"),
    [
        ("non-zero exit (1)", LIMITED),
        ("non-zero exit (137): dockerexec: unhealthy container", LIMITED),
        ("non-zero exit (137)", {}),
        ("", {}),
    ],
)
def test_a_task_that_just_failed(error: str, spec: dict[str, Any]) -> None:
    assert words.failure("app", error, spec) is None


@pytest.mark.parametrize(
    ("error", "spec", "kind", "said"),
    [
        (
            "no suitable node (scheduling constraints not satisfied on 1 node)",
            {"TaskTemplate": {"Placement": {"Constraints": ["node.labels.gpu == true"]}}},
            "no_node",
            "is what app asks for (node.labels.gpu == true)",
        ),
        (
            "no suitable node (insufficient resources on 1 node)",
            {"TaskTemplate": {"Resources": {"Reservations": {"MemoryBytes": 1 << 40, "NanoCPUs": 1_500_000_000}}}},
            "no_node",
            "has free what app reserves (1048576 MB of memory and 1.5 CPUs)",
        ),
        (
            "no suitable node (host-mode port already in use on 1 node)",
            {"EndpointSpec": {"Ports": [{"PublishedPort": 25}]}},
            "port_taken",
            "A port of app is taken on every node (25)",
        ),
        ("no suitable node (unsupported platform on 1 node)", {}, "no_node", "No node of the swarm takes app"),
    ],
)
def test_a_task_without_a_node(error: str, spec: dict[str, Any], kind: str, said: str) -> None:
    trouble = words.pending("app", error, spec)
    assert trouble and trouble.kind == kind
    assert said in trouble.message


def test_a_task_that_is_new_has_no_trouble() -> None:
    assert words.pending("app", "", {}) is None


def test_what_docker_refuses_otherwise_is_the_recipes() -> None:
    assert words.refused("services.app.image must be a string").kind == "invalid_recipe"
    assert words.refused('network "proxy" is declared as external, but could not be found').kind == "tool_missing"
    assert words.refused("Cannot connect to the Docker daemon at unix:///x").kind == "tool_failed"


@pytest.mark.parametrize(
    ("answer", "statuses", "proxied", "expected"),
    [
        (Answer(200), (), False, True),
        (Answer(404), (), False, True),
        (Answer(503), (), False, False),
        (Answer(404), (200, 204), False, False),
        (Answer(503), (503,), False, True),
        (Answer(404, "404 page not found\n"), (404,), True, False),
        (Answer(404, "no such page"), (404,), True, True),
    ],
)
def test_which_answers_count(answer: Answer, statuses: tuple[int, ...], proxied: bool, expected: bool) -> None:
    context = Context("0" * 32, "t", "x", Path(), Path(), health_status=statuses)
    assert context.accepts(answer, Address("127.0.0.1", 80, proxied=proxied)) is expected


@pytest.mark.docker
def test_memory_that_ends(deployer: Make, tmp_path: Path) -> None:
    need_swarm()
    hungry = "echo eating; x=aaaaaaaa; while :; do x=$$x$$x; done"
    limits = {"resources": {"limits": {"memory": "8M"}}}
    app = deployer(recipe(tmp_path / "hungry", command=["sh", "-c", hungry], deploy=limits))
    app.deploy()
    with pytest.raises(DeployError, match="ran out of memory: it wanted more than its limit of 8 MB") as caught:
        app.settle()
    assert caught.value.kind == "out_of_memory"
    assert "Its last words: eating" in caught.value.message
    assert any("task of app failed: non-zero exit (137)" in line for line in app.events())


@pytest.mark.docker
def test_a_node_that_is_not_there(deployer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    monkeypatch.setattr(settling, "MOST_HOMELESS", 0.5)
    wanted = {"placement": {"constraints": ["node.labels.gpu == true"]}}
    app = deployer(recipe(tmp_path / "gpu", deploy=wanted))
    app.deploy()
    with pytest.raises(DeployError, match=r"asks for \(node\.labels\.gpu == true\)") as caught:
        app.settle()
    assert caught.value.kind == "no_node"


@pytest.mark.docker
def test_an_image_that_vanished_after_it_was_pulled(deployer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    app = deployer(recipe(tmp_path / "gone", image="127.0.0.1:9/cc-ci-test/gone:1"))
    monkeypatch.setattr(app, "_get", lambda image: None)
    app.deploy()
    with pytest.raises(
        DeployError, match=r"The image of app is missing: No such image: 127\.0\.0\.1:9/cc-ci-test/gone:1"
    ) as caught:
        app.settle()
    assert caught.value.kind == "image_missing"


@pytest.mark.docker
def test_a_command_that_is_not_in_the_image(deployer: Make, tmp_path: Path) -> None:
    need_swarm()
    app = deployer(recipe(tmp_path / "wrong", command=["no-such-server"]))
    app.deploy()
    with pytest.raises(DeployError, match="its command 'no-such-server' is not in its image") as caught:
        app.settle()
    assert caught.value.recipes_fault


@pytest.mark.docker
def test_an_app_that_answers_something_else(deployer: Make) -> None:
    need_swarm()
    app = deployer("backup-app", health_path="/health", health_status=(200, 204), settle_seconds=3)
    app.deploy()
    with pytest.raises(DeployError, match="did not answer on port 8080 within 3 s as it should") as caught:
        app.settle()
    assert caught.value.kind == "never_answered"
    assert "GET /health gave 404, not 200 or 204" in caught.value.message
    app.write("app", "/data/health", b"well")
    assert app.settle().settled
