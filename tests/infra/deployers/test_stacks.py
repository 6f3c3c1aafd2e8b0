"""What a deployment had is gone when its removal says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.deployers.docker import api, stacks
from infra.deployers.docker.api import listed
from infra.deployers.docker.cli import call
from infra.deployers.docker.stacks import Owned
from infra.deployers.errors import DeployError
from tests.docker import IMAGE
from tests.infra.deployers.compose.reading import write
from tests.waiting import until


def test_a_network_that_the_last_task_brings_back_is_removed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swarm ends tasks after their service is gone, and one that was just being started makes its network again on the way."""
    there, looks = {"service": {"app"}, "network": {"one"}}, iter(range(100))
    tasks = [{"NodeID": "n", "Status": {"State": "starting"}}]

    def ids(kind: str, *_: str) -> list[str]:
        if kind == "network" and not there["service"] and next(looks) == 2:
            there["network"].add("again")
            tasks.clear()
        return sorted(there.get(kind, ()))

    def listed(kind: str, **_: Sequence[str]) -> list[Any]:
        assert kind == "task"
        return list(tasks)

    def remove(kind: str, name: str, **_: str) -> None:
        assert kind != "network" or not (tasks or there["service"]), "Docker hangs if a container is just joining it"
        there[kind].discard(name)

    monkeypatch.setattr(stacks, "ids", ids)
    monkeypatch.setattr(stacks, "listed", listed)
    monkeypatch.setattr(stacks.api, "remove", remove)
    monkeypatch.setattr(stacks.api, "prune_networks", lambda labels: None)
    monkeypatch.setattr(stacks, "proxy", SimpleNamespace(leave=lambda networks: None))
    monkeypatch.setattr(stacks, "egress", SimpleNamespace(removable=list))
    assert stacks.remove(Owned("x", ("a=b",))) == []
    assert (tasks, there) == ([], {"service": set(), "network": set()})


def test_a_task_on_a_node_that_is_away_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(stacks, "ids", lambda kind, *_: [])
    monkeypatch.setattr(
        stacks, "listed", lambda kind, **_: asked.append(kind) or [{"NodeID": "n", "Status": {"State": "running"}}]
    )
    monkeypatch.setattr(stacks, "_TASK_SECONDS", 0.2)
    assert stacks.remove(Owned("x", ("a=b",)), seconds=1000) == []
    assert len(asked) > 1 and set(asked) == {"task"}


def test_a_prune_beside_another_one_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker does one at a time, for all."""
    asked: list[str] = []

    def refuse(path: str, body: Any, **query: str) -> None:
        asked.append(query["filters"])
        raise DeployError("tool_failed", "Docker refused /networks/prune with 409: a prune operation is already running")

    monkeypatch.setattr(api, "post", refuse)
    api.prune_networks(["a=b"])
    assert asked == ['{"label": ["a=b"]}']


def test_what_is_too_long_for_a_command_is_an_error_and_no_crash() -> None:
    with pytest.raises(DeployError, match="docker network ls could not be started: Argument list too long"):
        call("network", "ls", f"--filter=label={'x' * 200_000}")


JOB = "{image: 'IMAGE', command: COMMAND, deploy: {mode: replicated-job, restart_policy: {condition: none}, placement: PLACE}}"
NOWHERE = "{constraints: [node.labels.nobody == yes]}"


@pytest.mark.docker
@pytest.mark.parametrize(
    ("commands", "place", "states"),
    [
        (["[sh, -c, 'true']", "[sh, -c, 'false']"], "{}", {"complete", "failed"}),
        (["[sh, -c, 'true']"], NOWHERE, {"pending"}),
        (["[sleep, '1000']"], "{}", {"running"}),
    ],
)
def test_jobs_are_removed_though_swarm_keeps_their_tasks(
    commands: list[str], place: str, states: set[str], deployer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It then leaves the network on their node, too, which is found there and not in the swarm."""
    job = JOB.replace("IMAGE", IMAGE).replace("PLACE", place)
    jobs = [f"  job{number}: {job.replace('COMMAND', command)}" for number, command in enumerate(commands)]
    app = deployer(write(tmp_path / "recipe", "\n".join(["services:", *jobs])))
    app.deploy()
    until(lambda: {str(task["Status"]["State"]) for task in listed("task", label=app.owned.labels)} == states)
    monkeypatch.setattr(stacks, "_TASK_SECONDS", 1000.0)
    assert app.teardown() == [], "whoever waits for these tasks waits until time is over, and leaves the network"
    assert listed("task", label=app.owned.labels), "else this shows nothing"
