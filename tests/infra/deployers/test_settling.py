"""Judging a stack from looks that are made by hand: what takes minutes on a swarm."""

from __future__ import annotations

from typing import Any

import pytest

from infra.deployers.base import DeployError, Service
from infra.deployers.settling import MOST_FAILURES, MOST_HOMELESS, Look, Settler, Spec, Task
from infra.deployers.settling import _service as seen_service

NAME = "ccci-0_app"


def look(*tasks: Task, running: int = 1, mark: str = "1", update: Any = None, template: str = "a", health: Any = "") -> Look:
    update = update or {}
    return Look(
        services=[Service("app", wanted=1, running=running, health=health)],
        specs={NAME: Spec(template, str(update.get("StartedAt", "")))},
        marks={NAME: mark},
        updates={NAME: update},
        tasks=list(tasks),
        version="",
    )


def task(number: int, state: str = "Failed", error: str = "non-zero exit (1)", desired: str = "Shutdown") -> Task:
    return Task(f"t{number}", NAME, desired, state, error)


def settler(mark: str = "1", before: dict[str, Spec] | None = None) -> Settler:
    return Settler(mark, before or {}, lambda service: f" words of {service}")


RUNNING = task(0, "Running", "", "Running")


def test_settled_is_running_as_wanted_and_healthy() -> None:
    assert settler().judge(look(RUNNING))
    assert not settler().judge(look(RUNNING, running=0))
    assert not settler().judge(look(RUNNING, health="starting"))
    assert settler().judge(look(RUNNING, health="healthy"))


def test_an_update_has_to_end_before_its_number_of_tasks_counts() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    assert not judge(look(RUNNING, mark="2", template="b"))  # not yet begun: the old task is the one that runs
    assert not judge(look(RUNNING, mark="2", template="b", update={"State": "updating", "StartedAt": "1"}))
    assert judge(look(RUNNING, mark="2", template="b", update={"State": "completed", "StartedAt": "1"}))


def test_an_earlier_updates_end_is_not_this_ones() -> None:
    judge = settler("3", {NAME: Spec("a", "1")}).judge
    assert not judge(look(RUNNING, mark="3", template="b", update={"State": "completed", "StartedAt": "1"}))


def test_an_unchanged_service_needs_no_update() -> None:
    assert settler("2", {NAME: Spec("a", "")}).judge(look(RUNNING, mark="2"))


def test_a_silent_rollback_is_seen_by_the_mark_alone() -> None:
    with pytest.raises(DeployError) as caught:
        settler("2", {NAME: Spec("a", "")}).judge(look(RUNNING, mark="1"))
    assert caught.value.kind == "rolled_back"
    assert "What answers is the old one" in caught.value.message


def test_a_rollback_under_way_is_waited_for() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    update = {"State": "rollback_started", "StartedAt": "1"}
    assert not judge(look(RUNNING, mark="1", update=update, running=0))


def test_a_paused_update_never_ends() -> None:
    with pytest.raises(DeployError, match="paused the update of app: too many failures"):
        update = {"State": "paused", "StartedAt": "1", "Message": "too many failures"}
        settler("2", {NAME: Spec("a", "")}).judge(look(RUNNING, mark="2", template="b", update=update))


def test_failures_are_counted_over_what_swarm_forgets() -> None:
    judge = settler().judge
    for number in range(1, MOST_FAILURES):
        assert not judge(look(task(number), task(99, "Ready", "", "Running"), running=0))
    with pytest.raises(DeployError) as caught:
        judge(look(task(MOST_FAILURES), task(99, "Ready", "", "Running"), running=0))
    assert caught.value.kind == "exits"
    assert caught.value.message == "The service app fails again and again: non-zero exit (1). words of app"


def test_a_service_that_is_not_started_again_fails_at_once() -> None:
    with pytest.raises(DeployError, match="fails again and again"):
        settler().judge(look(task(1), running=0))


def test_failures_before_this_deployment_do_not_count() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    old = [task(number) for number in range(9)]
    assert judge(look(*old, RUNNING, mark="2"))


def test_unhealthy_twice_is_never_healthy() -> None:
    red = [task(number, error="unhealthy container") for number in (1, 2)]
    with pytest.raises(DeployError) as caught:
        settler().judge(look(*red, task(3, "Starting", "", "Running"), running=0))
    assert caught.value.kind == "never_healthy"


def test_a_missing_image_is_named_at_once() -> None:
    with pytest.raises(DeployError) as caught:
        settler().judge(look(task(1, "Rejected", "No such image: x:1"), task(2, "Ready", "", "Running"), running=0))
    assert caught.value.kind == "image_missing"
    assert "No such image: x:1" in caught.value.message


def test_no_node_is_ours_and_believed_after_a_while() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    homeless = look(task(1, "Pending", "no suitable node (insufficient resources on 1 node)", "Running"), running=0)
    assert not judge(homeless)
    now = MOST_HOMELESS
    assert not judge(homeless)
    now += 0.1
    with pytest.raises(DeployError, match="has free what app reserves") as caught:
        judge(homeless)
    assert caught.value.kind == "no_node"
    assert not caught.value.recipes_fault


def test_a_task_that_finds_a_node_in_the_end_was_never_homeless() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    homeless = look(task(1, "Pending", "no suitable node (host-mode port already in use on 1 node)", "Running"), running=0)
    for _ in range(3):
        assert not judge(homeless)
        now += MOST_HOMELESS
        assert not judge(look(task(1, "Preparing", "", "Running"), running=0))
        now += MOST_HOMELESS


def test_137_is_out_of_memory_where_memory_is_limited() -> None:
    killed = [task(number, error="task: non-zero exit (137)") for number in (1, 2)]
    seen = look(*killed, task(3, "Ready", "", "Running"), running=0)
    seen.inspected[NAME] = {"TaskTemplate": {"Resources": {"Limits": {"MemoryBytes": 64 << 20}}}}
    with pytest.raises(DeployError, match="it wanted more than its limit of 64 MB") as caught:
        settler().judge(seen)
    assert caught.value.kind == "out_of_memory"
    assert caught.value.recipes_fault


def test_137_without_a_limit_is_asked_of_the_containers() -> None:
    killed = look(task(1), task(2), task(3, "Ready", "", "Running"), running=0)
    assert not settler().judge(killed)
    with pytest.raises(DeployError, match="more memory than there is"):
        Settler("1", {}, str, out_of_memory=lambda service: service == "app").judge(killed)


def test_the_version_has_to_be_the_one_that_was_deployed() -> None:
    seen = look(RUNNING)
    seen.version = "1.0.0+1"
    assert Settler("1", {}, str, version="1.0.0+1").judge(seen)
    with pytest.raises(DeployError, match=r"What runs is version 1\.0\.0\+1, and not 1\.1\.0\+1") as caught:
        Settler("1", {}, str, version="1.1.0+1").judge(seen)
    assert caught.value.kind == "rolled_back"


def test_each_failure_is_told_once() -> None:
    said: list[str] = []
    judge = Settler("1", {}, str, tell=said.append).judge
    for _ in range(2):
        judge(look(task(1), task(2, "Ready", "", "Running"), running=0))
    assert said == ["task of app failed: non-zero exit (1)"]


def test_a_service_may_fail_and_start_again_after_its_delay() -> None:
    again = task(2, "Ready", "", "Ready")
    judge = settler()
    assert not judge.judge(look(task(1), again, running=0))
    with pytest.raises(DeployError, match="fails again and again"):
        judge.judge(look(task(1), running=0))  # and nothing comes after it


@pytest.mark.parametrize(
    ("mode", "states", "settled"),
    [
        ({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}, ["Complete"], True),
        ({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}}, ["Complete"], False),
        ({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}}, ["Complete", "Complete"], True),
        ({"GlobalJob": {}}, ["Complete"], True),
        ({"GlobalJob": {}}, ["Failed"], False),
        ({"Replicated": {"Replicas": 1}}, ["Complete"], False),  # which Swarm starts again
    ],
)
def test_a_job_is_through_when_its_tasks_are(mode: dict[str, Any], states: list[str], settled: bool) -> None:
    tasks = [Task(f"t{n}", NAME, "Complete", state, "") for n, state in enumerate(states)]
    found = seen_service("app", {"Spec": {"Name": NAME, "Mode": mode, "TaskTemplate": {}}}, tasks, {})
    assert (found.running == found.wanted) is settled
