"""A service that fails says in words what Swarm or Docker said: by their own phrases, and on the real thing."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from infra.deployers import messages
from infra.deployers.context import Context
from infra.deployers.docker import addresses
from infra.deployers.docker.addresses import Use
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, Answer
from infra.deployers.swarm import convergence, ephemeral
from infra.deployers.swarm.persistent import PersistentDeployer
from tests.docker import IMAGE, docker, need_swarm

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
            "A port of app is already in use on this host: starting",
        ),
        (
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
            {},
            "tool_failed",
            "no address range left",
        ),
        ("all predefined address pools have been fully subnetted", {}, "tool_failed", "no address range left"),
        (
            "mkdir /var/lib/docker/overlay2/1: no space left on device",
            {},
            "disk_full",
            "Docker's disk is full, so app could not be started",
        ),
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
            "its command '/entry.sh' is not executable",
        ),
    ],
)
def test_a_failed_task(error: str, spec: dict[str, Any], kind: str, said: str) -> None:
    trouble = messages.failure("app", error, spec)
    assert trouble
    assert trouble.kind == kind
    assert said in trouble.message
    assert trouble.fix


@pytest.mark.parametrize(
    ("error", "spec"),
    [
        ("non-zero exit (1)", LIMITED),
        ("non-zero exit (137): dockerexec: unhealthy container", LIMITED),
        ("non-zero exit (137)", LIMITED),
        ("", {}),
    ],
)
def test_a_task_that_just_failed(error: str, spec: dict[str, Any]) -> None:
    assert messages.failure("app", error, spec) is None


@pytest.mark.parametrize(
    ("error", "spec", "kind", "said"),
    [
        (
            "no suitable node (scheduling constraints not satisfied on 1 node)",
            {"TaskTemplate": {"Placement": {"Constraints": ["node.labels.gpu == true"]}}},
            "no_node",
            "meets the constraints of app (node.labels.gpu == true)",
        ),
        (
            "no suitable node (insufficient resources on 1 node)",
            {"TaskTemplate": {"Resources": {"Reservations": {"MemoryBytes": 1 << 40, "NanoCPUs": 1_500_000_000}}}},
            "no_node",
            "has the free resources that app reserves (1048576 MB of memory and 1.5 CPUs)",
        ),
        (
            "no suitable node (host-mode port already in use on 1 node)",
            {"EndpointSpec": {"Ports": [{"PublishedPort": 25}]}},
            "port_taken",
            "A port of app is already in use on every node (25)",
        ),
        (
            "no suitable node (1 node not available for new tasks; scheduling constraints not satisfied on 1 node)",
            {"TaskTemplate": {"Placement": {"Constraints": ["node.labels.gpu == true"]}}},
            "no_node",
            "A node of the swarm is down or unavailable for tasks",
        ),
        ("no suitable node (unsupported platform on 1 node)", {}, "no_node", "No node of the swarm can run app"),
    ],
)
def test_a_task_without_a_node(error: str, spec: dict[str, Any], kind: str, said: str) -> None:
    trouble = messages.pending("app", error, spec)
    assert trouble and trouble.kind == kind
    assert said in trouble.message


PROXY = Use("proxy", "10.0.1.0/24", 253, 253)
ROOMY = Use("inside", "10.0.2.0/24", 253, 9)


@pytest.mark.parametrize(
    ("networks", "kind", "said", "fix"),
    [
        (
            [ROOMY, PROXY],
            "no_address",
            "left for app on the network proxy (10.0.1.0/24, 253 of 253 addresses in use).",
            "--subnet",
        ),
        ([Use("ccci-0_own", "10.0.1.0/29", 5, 5)], "invalid_recipe", "the recipe's own network ccci-0_own", "larger subnet"),
        (
            [ROOMY],
            "no_address",
            "Swarm does not schedule the task of app on inside (10.0.2.0/24, 9 of 253",
            "Docker daemon's log",
        ),
        ([], "no_address", "Swarm does not schedule the task of app: it stays New", "Docker daemon's log"),
    ],
)
def test_a_task_that_swarm_does_not_take_up(networks: list[Use], kind: str, said: str, fix: str) -> None:
    error = messages.unallocated("app", "ccci-0", networks)
    assert error.kind == kind and error.recipes_fault is (kind == "invalid_recipe")
    assert said in error.message
    assert fix in error.fix


@pytest.mark.docker
def test_a_shared_network_without_addresses_is_ours_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    monkeypatch.setattr(convergence, "MOST_NEW", 1.0)
    monkeypatch.setattr(convergence, "MOST_PREPARING", 1.0)
    name = f"cc-ci-test-{uuid.uuid4().hex[:8]}"
    with _network(name, "10.231.77.0/29"):
        recipe_of_many = recipe(tmp_path / "many", networks=["shared"], deploy={"replicas": 6})
        path = recipe_of_many / "compose.yml"
        path.write_text(path.read_text() + f"networks: {{shared: {{external: true, name: {name}}}}}\n")
        given = {"app": name, "app_stack": name, "mark": "1", "ephemeral": False}
        work = tmp_path / "work"
        work.mkdir()
        app = PersistentDeployer(Context(uuid.uuid4().hex, "test", "many", recipe_of_many, work, **given))
        try:
            app.deploy()
            with pytest.raises(DeployError) as caught:
                app.settle()
            use = addresses.uses([name])
        finally:
            app.undeploy()
            app.close()
    assert caught.value.kind == "no_address" and not caught.value.recipes_fault
    assert f"No address is left for app on the network {name} (10.231.77.0/29, " in caught.value.message
    assert [one.full for one in use] == [True]
    assert use[0].stacks == {name}


class _App:
    """An app of the server, whose name has what stands between a stack's name and a service's."""

    def __init__(self, folder: Path) -> None:
        self.stack, self.folder, self.made = f"cc_ci_test_{uuid.uuid4().hex[:8]}", folder, 0

    def version(self, command: str, **deploy: Any) -> PersistentDeployer:
        """It with a service `web` of this command."""
        self.made += 1
        checkout, work = self.folder / f"checkout-{self.made}", self.folder / f"work-{self.made}"
        work.mkdir()
        health = {"test": ["CMD-SHELL", "echo the database is not there; test ! -e /sick"], "interval": "500ms", "retries": 1}
        recipe(checkout, command=["sh", "-c", command], healthcheck=health, deploy=deploy)
        path = checkout / "compose.yml"
        path.write_text(path.read_text().replace("  app:", "  web:"))
        given = {"app": self.stack, "app_stack": self.stack, "mark": str(self.made), "ephemeral": False, "settle_seconds": 600}
        return PersistentDeployer(Context(uuid.uuid4().hex, "test", "app", checkout, work, **given))


@pytest.mark.docker
@pytest.mark.parametrize(
    ("command", "action", "kind", "said"),
    [
        (
            "echo no configuration found; exit 3",
            "rollback",
            "rolled_back",
            r"rolled web back .*exit \(3\).*: \"no configuration found\"",
        ),
        # (Two tasks that are killed for it may be seen before the rollback.)
        (
            "touch /sick; exec sleep 1000",
            "rollback",
            "",
            r"(rolled web back|check of web never) .*output: \"the database is not there\"",
        ),
        # With two replicas Swarm goes no further: the other one stays what it was.
        (
            "echo no configuration found; exit 3",
            "pause",
            "never_healthy",
            r"paused .* of web: .*exit \(3\).*: \"no configuration found\"",
        ),
    ],
)
def test_an_update_that_swarm_stops_is_told_with_the_services_own_words(
    command: str, action: str, kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_swarm()
    # On a slow machine tasks end often enough to be given up before Swarm stops the update: here Swarm decides.
    monkeypatch.setattr(convergence.Settler, "_give_up", lambda *_: None)
    # Swarm waits before it replaces the second task: else it may do so before it knows that the first one failed.
    app, update = _App(tmp_path), {"failure_action": action, "monitor": "100s", "delay": "100s"}
    first = app.version("exec sleep 1000", replicas=2, update_config=update)
    second = app.version(command, replicas=2, update_config=update)
    try:
        first.deploy()
        first.settle()
        second.deploy()
        with pytest.raises(DeployError) as caught:
            second.settle()
    finally:
        first.undeploy()
        for one in (first, second):
            one.close()
    assert kind in ("", caught.value.kind)
    assert re.search(said, caught.value.message, re.DOTALL), caught.value.message


@contextmanager
def _network(name: str, subnet: str) -> Iterator[None]:
    docker("network", "create", "--driver=overlay", f"--subnet={subnet}", name)
    try:
        yield
    finally:
        until = time.monotonic() + 240  # Swarm lets go of it a moment after its last task
        while subprocess.run(["docker", "network", "rm", name], capture_output=True).returncode and time.monotonic() < until:
            time.sleep(0.2)


def test_a_task_that_is_new_has_no_trouble() -> None:
    assert messages.pending("app", "", {}) is None


def test_what_docker_refuses_otherwise_is_the_recipes() -> None:
    assert messages.refused("services.app.image must be a string").kind == "invalid_recipe"
    assert messages.refused('network "proxy" is declared as external, but could not be found').kind == "tool_missing"
    assert messages.refused("Cannot connect to the Docker daemon at unix:///x").kind == "tool_failed"


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


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("all of it", "all of it"),
        ("the token is s3cret-of-this-run\nend", "… end"),
        ("x" * 30, "… " + "x" * 20),
        ("words" + " " * 30, "… "),
    ],
)
def test_what_is_too_long_is_cut_between_words(printed: str, shown: str) -> None:
    assert messages.quoted("Output", printed, 20) == f' Output: "{shown}".'


@pytest.mark.docker
def test_memory_that_ends(deployer: Make, tmp_path: Path) -> None:
    need_swarm()
    hungry = "echo eating; x=aaaaaaaa; while :; do x=$$x$$x; done"
    limits = {"resources": {"limits": {"memory": "8M"}}}
    app = deployer(recipe(tmp_path / "hungry", command=["sh", "-c", hungry], deploy=limits))
    app.deploy()
    with pytest.raises(DeployError, match="ran out of memory: it needed more than its limit of 8 MB") as caught:
        app.settle()
    assert caught.value.kind == "out_of_memory"
    assert 'Last log lines: "eating' in caught.value.message
    assert any("task of app failed: non-zero exit (137)" in line for line in app.events())


@pytest.mark.docker
def test_a_node_that_is_not_there(deployer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    monkeypatch.setattr(convergence, "MOST_HOMELESS", 0.5)
    wanted = {"placement": {"constraints": ["node.labels.gpu == true"]}}
    app = deployer(recipe(tmp_path / "gpu", deploy=wanted))
    app.deploy()
    with pytest.raises(DeployError, match=r"the constraints of app \(node\.labels\.gpu == true\)") as caught:
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
def test_an_app_that_answers_something_else(deployer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    app = deployer("backup-app", health_path="/health", health_status=(200, 204), settle_seconds=300)
    app.deploy()
    # Its time is over once it has answered, and not before.
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (1000 if app._asker.answer else 0))
    monkeypatch.setattr(ephemeral, "time", clock)
    with pytest.raises(DeployError, match="did not answer on port 8080 within 300 s as expected") as caught:
        app.settle()
    assert caught.value.kind == "never_answered"
    assert "GET /health returned 404, not 200 or 204" in caught.value.message
    monkeypatch.undo()
    app.write("app", "/data/health", b"well")
    assert app.settle().settled
