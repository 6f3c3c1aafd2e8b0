"""Judging a stack from looks that are made by hand: what takes minutes on a swarm."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from infra.deployers.base import Deployment
from infra.deployers.context import Service
from infra.deployers.docker.addresses import Use
from infra.deployers.errors import DeployError
from infra.deployers.swarm.convergence import (
    MOST_FAILURES,
    MOST_HOMELESS,
    MOST_NEW,
    MOST_PREPARING,
    ROUNDS,
    Poll,
    Settler,
    Spec,
    Task,
    pause_of,
)
from infra.deployers.swarm.convergence import _service as seen_service
from infra.deployers.swarm.ephemeral import SwarmDeployer
from infra.deployers.swarm.patience import PATIENCE, STAYS, STAYS_AGAIN

NAME = "ccci-0_app"


def poll(*tasks: Task, running: int = 1, mark: str = "1", update: Any = None, template: str = "a", health: Any = "") -> Poll:
    update = update or {}
    return Poll(
        services=[Service("app", wanted=1, running=running, health=health)],
        specs={NAME: Spec(template, str(update.get("StartedAt", "")))},
        marks={NAME: mark},
        updates={NAME: update},
        tasks=list(tasks),
        version="",
        stack="ccci-0",
    )


def task(
    number: int, state: str = "Failed", error: str = "non-zero exit (1)", desired: str = "Shutdown", current: bool = True
) -> Task:
    return Task(f"t{number}", NAME, desired, state, error, current)


def settler(mark: str = "1", before: dict[str, Spec] | None = None) -> Settler:
    return Settler(mark, before or {}, lambda service: f" words of {service}")


RUNNING = task(0, "Running", "", "Running")
OLD = task(0, "Running", "", "Running", current=False)


def test_settled_is_running_as_wanted_and_healthy() -> None:
    assert settler().judge(poll(RUNNING))
    assert not settler().judge(poll(RUNNING, running=0))
    assert not settler().judge(poll(RUNNING, health="starting"))
    assert settler().judge(poll(RUNNING, health="healthy"))


def test_an_update_has_to_end_before_its_number_of_tasks_counts() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    assert not judge(poll(OLD, mark="2", template="b"))  # not yet begun
    assert not judge(poll(RUNNING, mark="2", template="b", update={"State": "updating", "StartedAt": "1"}))
    assert not judge(poll(RUNNING, OLD, mark="2", template="b", update={"State": "completed", "StartedAt": "1"}))
    assert judge(poll(RUNNING, mark="2", template="b", update={"State": "completed", "StartedAt": "1"}))


def test_an_earlier_updates_end_is_not_this_ones() -> None:
    judge = settler("3", {NAME: Spec("a", "1")}).judge
    assert not judge(poll(OLD, mark="3", template="b", update={"State": "completed", "StartedAt": "1"}))


def test_an_unchanged_service_needs_no_update() -> None:
    assert settler("2", {NAME: Spec("a", "")}).judge(poll(RUNNING, mark="2"))


def test_a_silent_rollback_is_seen_by_the_mark_alone() -> None:
    with pytest.raises(DeployError) as caught:
        settler("2", {NAME: Spec("a", "")}).judge(poll(RUNNING, mark="1"))
    assert caught.value.kind == "rolled_back"
    assert "The old version is what answers" in caught.value.message


def test_a_rollback_under_way_is_waited_for() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    update = {"State": "rollback_started", "StartedAt": "1"}
    assert not judge(poll(RUNNING, mark="1", update=update, running=0))


PAUSED = {"State": "paused", "StartedAt": "1", "Message": "too many failures"}


@pytest.mark.parametrize("tasks", [(task(1), OLD), (task(1),), (task(1, "Shutdown", ""),)])
def test_a_paused_update_that_nothing_goes_on_with_is_told_with_the_services_words(tasks: tuple[Task, ...]) -> None:
    with pytest.raises(DeployError, match=r"paused the update of app: too many failures.* words of app"):
        settler("2", {NAME: Spec("a", "")}).judge(poll(*tasks, mark="2", template="b", update=PAUSED, running=0))


def test_a_paused_update_is_over_when_all_that_was_asked_for_is_there() -> None:
    assert settler("2", {NAME: Spec("a", "")}).judge(poll(RUNNING, mark="2", template="b", update=PAUSED))


def test_the_new_task_of_a_paused_update_is_started_again_as_long_as_any_other() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    assert not judge(poll(task(1), task(2, "Ready", "", "Ready"), mark="2", template="b", update=PAUSED, running=0))


def test_a_service_without_replicas_needs_no_update() -> None:
    seen = poll(mark="2", template="b", running=0)
    seen.services = [Service("app", wanted=0, running=0)]
    assert settler("2", {NAME: Spec("a", "")}).judge(seen)
    seen.tasks = [OLD]  # it is stopped yet
    assert not settler("2", {NAME: Spec("a", "")}).judge(seen)


def test_the_stacks_name_may_hold_what_stands_before_a_services() -> None:
    seen = poll(task(1), running=0)
    seen.stack, name = "my_app", "my_app_web"
    seen.tasks = [replace(seen.tasks[0], service=name)]
    seen.services = [Service("web", wanted=1, running=0)]
    seen.specs, seen.marks, seen.updates = {name: Spec("a", "")}, {name: "1"}, {name: {}}
    with pytest.raises(DeployError, match=r"The service web failed: .* words of web"):
        settler().judge(seen)


def test_what_swarm_forgets_is_counted_until_nothing_speaks_for_it() -> None:
    now = 0.0
    judge = Settler("1", {}, lambda service: f" words of {service}", clock=lambda: now).judge
    for number in range(1, MOST_FAILURES + 1):
        assert not judge(poll(task(number), task(99, "Ready", "", "Running"), running=0))
    now += PATIENCE["none"] + 1
    with pytest.raises(DeployError) as caught:
        judge(poll(task(MOST_FAILURES), task(99, "Ready", "", "Running"), running=0))
    assert caught.value.kind == "exits"
    assert caught.value.message == "The service app keeps failing: non-zero exit (1). words of app"


def runs(number: int) -> Task:
    return task(number, "Running", "", "Running")


@pytest.mark.parametrize(("lived", "needed"), [(0.0, 2.0), (3.0, 5.0), (8.0, 12.0), (60.0, 15.0)])
def test_what_runs_again_after_it_failed_is_up_when_it_has_run_for_longer(lived: float, needed: float) -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    judge(poll(*([runs(1)] if lived else []), running=0))
    now = lived
    assert not judge(poll(task(1), runs(2)))
    now += needed - 0.1
    assert not judge(poll(task(1), runs(2)))
    now += 0.2
    assert judge(poll(task(1), runs(2)))


def test_a_crash_loop_is_not_up_though_it_runs_at_each_look() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    judge(poll(runs(0), running=0))
    with pytest.raises(DeployError, match="The service app keeps failing: non-zero exit"):
        for number in range(100):
            for _ in range(3):
                now += 1
                assert not judge(poll(*map(task, range(number)), runs(number))) or not number
    assert 20 < now < 60


def test_what_runs_at_last_is_not_given_up_for_what_was_before() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    for number in range(MOST_FAILURES):
        assert not judge(poll(*map(task, range(number + 1)), task(99, "Ready", "", "Running"), running=0))
    now += PATIENCE["none"] - 1
    failed = [task(number) for number in range(MOST_FAILURES)]
    assert not judge(poll(*failed, runs(99)))
    now += 1.5
    assert not judge(poll(*failed, runs(99)))
    now += 1
    assert judge(poll(*failed, runs(99)))


def test_what_has_run_for_some_time_is_not_given_up_for_what_was_before_it_either() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    for number in range(3):
        judge(poll(*map(task, range(number)), runs(number)))
        now += 6
    failed = [task(number) for number in range(3)]
    looks = []
    for _ in range(12):
        looks.append(judge(poll(*failed, runs(3))))
        now += 1
    assert now > 6 + PATIENCE["none"] and looks == [False] * 10 + [True] * 2


def test_one_that_ends_well_at_times_is_not_in_doubt() -> None:
    judge = settler().judge
    assert not judge(poll(task(1, "Complete", ""), task(2, "Ready", "", "Running"), running=0))
    assert judge(poll(task(1, "Complete", ""), runs(2)))


def test_of_several_replicas_the_youngest_counts() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    judge(poll(runs(1), runs(2), running=0))
    now = 3.0
    judge(poll(task(1), task(2), runs(3), runs(4), running=0))
    now = 9.0
    assert not judge(poll(task(1), task(2), task(4), runs(3), runs(5)))
    now = 30.0
    assert judge(poll(task(1), task(2), task(4), runs(3), runs(5)))


def test_who_is_in_doubt_when_time_is_over_is_named() -> None:
    now = Deployment([Service("app", wanted=1, running=1), Service("worker", wanted=1, running=1, problem="exited (1)")])
    asked: Any = SimpleNamespace(
        context=SimpleNamespace(settle_seconds=300), _asked_for=str, _last_lines=lambda service: f" words of {service}"
    )
    settler: Any = SimpleNamespace(in_doubt=lambda service: service == "worker")
    error = SwarmDeployer._too_late(asked, now, False, settler, 300)
    assert error.message == "2 of 2 replicas after 300 s. worker: exited (1). words of worker"


def test_a_job_that_ran_through_after_it_failed_is_through() -> None:
    seen = poll(task(1), task(2, "Complete", "", "Complete"))
    seen.inspected[NAME] = {"Mode": {"ReplicatedJob": {}}}
    assert settler().judge(seen)


def test_a_service_that_ends_well_again_and_again_is_no_better() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    for number in range(MOST_FAILURES):
        assert not judge(poll(task(number, "Complete", ""), task(99, "Ready", "", "Running"), running=0))
    now += PATIENCE["none"] + 1
    with pytest.raises(DeployError, match="it exited with code 0, but should keep running"):
        judge(poll(task(99, "Ready", "", "Running"), running=0))


@pytest.mark.parametrize(
    ("delay", "tasks", "running"),
    [
        (ROUNDS, [task(1, "Complete", "")], 1),
        (ROUNDS, [task(2, "Ready", "", "Ready"), task(1, "Complete", "")], 1),
        (ROUNDS, [task(3, "Ready", "", "Ready"), task(2), task(1, "Complete", "")], 0),
        (ROUNDS, [task(3, "Running", "", "Running"), task(2), task(1, "Complete", "")], 1),
        (ROUNDS - 1, [task(2, "Ready", "", "Ready"), task(1, "Complete", "")], 0),
        (ROUNDS, [task(1, "Complete", "", current=False)], 0),
    ],
)
def test_of_a_service_that_works_in_rounds_the_last_round_counts(delay: int, tasks: list[Task], running: int) -> None:
    template = {"RestartPolicy": {"Condition": "any", "Delay": delay}}
    spec = {"Name": NAME, "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": template}
    assert seen_service("app", {"Spec": spec}, tasks, {}).running == running
    judged = settler()
    seen = poll(*tasks, running=running)
    seen.inspected[NAME] = spec
    judged.judge(seen)
    ended = {"t1"} if delay < ROUNDS else set()
    assert judged._failed.get("app", {}).keys() == ended | {one.id for one in tasks if one.failed}


def test_what_fell_is_told_once_and_has_to_stay_for_longer_the_next_time() -> None:
    now = 0.0
    before = Settler("1", {}, str, clock=lambda: now)
    assert before.judge(poll(runs(1)))
    assert before.fell(poll(runs(1))) == {}
    now = 100.0
    seen = poll(runs(2), task(1))
    assert before.fell(seen) == {"app": "non-zero exit (1)"}
    judged = before.after()
    assert not judged.judge(seen)
    assert judged.fell(seen) == {}
    now += STAYS_AGAIN - 1
    assert not judged.judge(seen)
    now += 1
    assert judged.judge(seen)


def test_what_has_run_for_long_since_it_fell_is_in_no_doubt() -> None:
    judged = Settler("1", {}, str, clock=lambda: 100.0).after()
    assert judged.judge(poll(replace(runs(2), age=STAYS_AGAIN), replace(task(1), age=STAYS_AGAIN + 1)))


def test_what_failed_while_it_came_up_does_not_count_when_it_falls() -> None:
    now = 0.0
    before = Settler("1", {}, str, clock=lambda: now)
    red = [task(number, error="unhealthy container") for number in (1, 2)]
    before.judge(poll(runs(3), *red[:1]))
    now = 100.0
    again = before.after()
    for seconds in (0, 30, 31):
        now += seconds
        settled = again.judge(poll(runs(4), *reversed(red), health="healthy"))
    assert settled
    waiting = before.after()
    waiting.judge(poll(task(5, "Ready", "", "Ready"), *red, running=0))
    now += 100
    assert not waiting.judge(poll(task(5, "Ready", "", "Ready"), *red, running=0)), "its restart delay is a long one"


def test_one_that_ends_with_0_fell_too_and_is_in_doubt_if_it_has_to_answer() -> None:
    seen = poll(runs(2), task(1, "Complete", ""))
    for web, up in (("", True), ("app", False)):
        judged = Settler("1", {}, str, web=web, clock=lambda: 100.0).after()
        assert judged.fell(seen) == {"app": "it exited with code 0, but should keep running"}
        assert judged.judge(seen) is up


@pytest.mark.parametrize(("web", "health"), [("app", ""), ("", "healthy")])
def test_what_answers_or_was_healthy_is_down_when_it_ends_with_0_though_swarm_leaves_it_so(web: str, health: str) -> None:
    judged = Settler("1", {}, str, web=web)
    once = {"TaskTemplate": {"RestartPolicy": {"Condition": "on-failure"}}}
    runs = poll(task(1, "Running", "", "Running"), health=health)
    runs.inspected[NAME] = once
    assert judged.judge(runs)
    ended = poll(task(1, "Complete", "", "Shutdown"))
    ended.inspected[NAME] = once
    why = "it exited with code 0(, but| after its health check had passed, so it) should keep running"
    assert re.match(why, judged.fell(ended)["app"])
    with pytest.raises(DeployError, match=f"The service app is down: {why}"):
        judged.after().judge(ended)
    unasked = Settler("1", {}, str)
    assert unasked.judge(ended) and not unasked.fell(ended), "it may have done its work"


@pytest.mark.parametrize(
    ("condition", "more", "health", "stays"),
    [
        ("on-failure", {}, "", False),
        ("on-failure", {}, "healthy", True),
        ("none", {}, "healthy", False),
        ("none", {"EndpointSpec": {"Ports": [{}]}}, "", True),
        ("on-failure", {"Labels": {"traefik.enable": "true"}}, "", True),
        ("on-failure", {"Labels": {"traefik.enable": "false"}}, "", False),
    ],
)
def test_who_should_keep_running(condition: str, more: dict[str, Any], health: str, stays: bool) -> None:
    judged = Settler("1", {}, str)
    spec = {"TaskTemplate": {"RestartPolicy": {"Condition": condition}}, **more}
    up = poll(replace(runs(1), age=60), health=health)
    up.inspected[NAME] = spec
    assert judged.judge(up)
    ended = poll(task(1, "Complete", "", "Shutdown"))
    ended.inspected[NAME] = spec
    assert bool(judged.fell(ended)) == stays


@pytest.mark.parametrize(
    ("error", "lack", "needed"),
    [
        ("", False, STAYS),
        ("task: non-zero exit (143)", False, STAYS),
        ("task: non-zero exit (137)", True, STAYS_AGAIN),
        ("task: non-zero exit (1)", False, STAYS_AGAIN),
        ("task: non-zero exit (143): dockerexec: unhealthy container", False, STAYS_AGAIN),
    ],
)
def test_what_a_hook_restarted_is_watched_less_long_than_what_failed_by_itself(error: str, lack: bool, needed: float) -> None:
    now = 0.0
    up = Settler("1", {}, str, web="app", clock=lambda: now, out_of_memory=lambda tasks: lack)
    assert up.judge(poll(runs(1)))
    hooked = up.after(hook=True)
    seen = poll(task(1, "Failed" if error else "Complete", error), runs(2))
    looks = []
    for _ in range(61):
        looks.append(hooked.judge(seen))
        now += 1
    assert looks.index(True) == needed
    assert hooked.on_purpose == (needed == STAYS) and list(hooked.fallen) == ["app"]


def test_a_job_without_replicas_is_done() -> None:
    spec = {"Name": NAME, "Mode": {"ReplicatedJob": {"MaxConcurrent": 0, "TotalCompletions": 0}}}
    assert seen_service("app", {"Spec": spec}, [], {}).wanted == 0


def test_a_task_of_the_version_before_that_ends_meanwhile_says_nothing() -> None:
    before = {NAME: Spec("a", "")}
    judged = settler("2", before)
    assert not judged.judge(poll(RUNNING, OLD, mark="2", update={"State": "updating", "StartedAt": "x"}))
    died = task(7, error="task: non-zero exit (137)", current=False)
    assert not judged.judge(poll(RUNNING, died, mark="2", update={"State": "updating", "StartedAt": "x"}))
    assert not judged.failures
    done = {"State": "completed", "StartedAt": "x"}
    assert judged.judge(poll(RUNNING, died, mark="2", update=done)) and not judged.failures
    judged.judge(poll(RUNNING, task(8), mark="2", update=done))
    assert judged.failures == 1, "its own do"


@pytest.mark.parametrize(
    ("more", "pause"),
    [
        ({}, 30),
        ({"Labels": {"coop-cloud.x.version": "1"}}, 30),
        ({"Labels": {"traefik.enable": "true"}}, 0),
        ({"Labels": {"traefik.enable": "false"}}, 30),
        ({"health": {"Test": ["NONE"]}}, 30),
        ({"EndpointSpec": {"Ports": [{"TargetPort": 80}]}}, 0),
        ({"health": {"Test": ["CMD", "true"]}}, 0),
        ({"Mode": {"ReplicatedJob": {}}}, 0),
        ({"condition": "on-failure"}, 0),
    ],
)
def test_what_is_asked_for_anything_does_not_work_in_rounds(more: dict[str, Any], pause: int) -> None:
    policy = {"Condition": more.pop("condition", "any"), "Delay": 30 * 10**9}
    template = {"RestartPolicy": policy, "ContainerSpec": {"Healthcheck": more.pop("health", None)}}
    assert pause_of({"TaskTemplate": template, **more}) == pause


def test_a_service_that_is_not_started_again_fails_at_once() -> None:
    with pytest.raises(DeployError, match=r"The service app failed: non-zero exit \(1\)"):
        settler().judge(poll(task(1), running=0))


def test_what_ended_before_the_first_look_and_is_not_started_again_is_gone() -> None:
    now = 0.0
    judge = Settler("2", {NAME: Spec("a", "")}, str, clock=lambda: now).judge
    ended = poll(task(1), running=0, mark="2")
    assert not judge(ended)
    now = MOST_HOMELESS
    assert not judge(ended), "what was just scaled up has no task for a moment"
    now += 1
    with pytest.raises(DeployError, match=r"The service app failed: non-zero exit \(1\)"):
        judge(ended)


@pytest.mark.parametrize(("pause", "given_up"), [(20, False), (3600, True)])
def test_the_next_round_of_one_that_failed_is_not_waited_for_if_it_is_far_away(pause: int, given_up: bool) -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    seen = poll(task(1), task(2, "Ready", "", "Ready"), running=0)
    seen.inspected[NAME] = {"TaskTemplate": {"RestartPolicy": {"Delay": pause * 10**9}}}
    assert not judge(seen)
    now = MOST_HOMELESS + 1
    with pytest.raises(DeployError, match="its next round is 3600 s later") if given_up else nullcontext():
        assert not judge(seen)


def test_of_two_replicas_one_that_is_not_started_again_is_gone() -> None:
    now = 0.0
    judge = Settler("1", {}, str, web="app", clock=lambda: now).judge
    seen = poll(runs(1), task(2, "Complete", ""), running=2)
    seen.services = [replace(seen.services[0], wanted=2)]
    seen.inspected[NAME] = {"TaskTemplate": {"RestartPolicy": {"Condition": "on-failure"}}}
    assert not judge(seen)
    now = MOST_HOMELESS + 1
    with pytest.raises(DeployError, match="The service app is down: it exited with code 0, but should keep running"):
        judge(seen)


def test_failures_before_this_deployment_do_not_count() -> None:
    judge = settler("2", {NAME: Spec("a", "")}).judge
    old = [task(number) for number in range(9)]
    assert judge(poll(*old, RUNNING, mark="2"))


def test_unhealthy_twice_is_never_healthy() -> None:
    red = [task(number, error="unhealthy container") for number in (1, 2)]
    with pytest.raises(DeployError) as caught:
        settler().judge(poll(*red, task(3, "Starting", "", "Running"), running=0))
    assert caught.value.kind == "never_healthy"


def test_a_missing_image_is_named_at_once() -> None:
    with pytest.raises(DeployError) as caught:
        settler().judge(poll(task(1, "Rejected", "No such image: x:1"), task(2, "Ready", "", "Running"), running=0))
    assert caught.value.kind == "image_missing"
    assert "No such image: x:1" in caught.value.message


def test_no_node_is_ours_and_believed_after_a_while() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    homeless = poll(task(1, "Pending", "no suitable node (insufficient resources on 1 node)", "Running"), running=0)
    assert not judge(homeless)
    now = MOST_HOMELESS
    assert not judge(homeless)
    now += 0.1
    with pytest.raises(DeployError, match="has the free resources that app reserves") as caught:
        judge(homeless)
    assert caught.value.kind == "no_node"
    assert not caught.value.recipes_fault


def test_a_task_that_finds_a_node_in_the_end_was_never_homeless() -> None:
    now = 0.0
    judge = Settler("1", {}, str, clock=lambda: now).judge
    homeless = poll(task(1, "Pending", "no suitable node (host-mode port already in use on 1 node)", "Running"), running=0)
    for _ in range(3):
        assert not judge(homeless)
        now += MOST_HOMELESS
        assert not judge(poll(task(1, "Preparing", "", "Running"), running=0))
        now += MOST_HOMELESS


@pytest.mark.parametrize(
    ("state", "use", "most", "kind"),
    [
        ("New", Use("proxy", "10.0.1.0/29", 5, 5), MOST_NEW, "no_address"),
        ("New", Use("proxy", "10.0.1.0/24", 253, 5), MOST_NEW, "no_address"),
        ("Preparing", Use("proxy", "10.0.1.0/29", 5, 5), MOST_PREPARING, "no_address"),
        ("Preparing", Use("proxy", "10.0.1.0/24", 253, 5), MOST_PREPARING, ""),  # a node that pulls
        ("Starting", Use("proxy", "10.0.1.0/29", 5, 5), MOST_PREPARING, ""),
    ],
)
def test_a_task_that_waits_for_an_address_is_asked_about_after_a_while(state: str, use: Use, most: float, kind: str) -> None:
    now = 0.0
    asked: list[str] = []
    judge = Settler("1", {}, str, networks=lambda name: asked.append(name) or [use], clock=lambda: now).judge  # type: ignore[func-returns-value]
    waits = poll(task(1, state, "", "Running"), running=0)
    assert not judge(waits)
    now = most
    assert not judge(waits)
    assert not asked
    now += 0.1
    if not kind:
        assert not judge(waits)
        return
    with pytest.raises(DeployError, match=r"proxy \(10\.0\.1\.0") as caught:
        judge(waits)
    assert caught.value.kind == kind and not caught.value.recipes_fault
    assert asked == [NAME]


def test_137_says_only_that_something_killed_it() -> None:
    killed = [task(number, error="task: non-zero exit (137)") for number in (1, 2)]
    seen = poll(*killed, task(3, "Ready", "", "Running"), running=0)
    seen.inspected[NAME] = {"TaskTemplate": {"Resources": {"Limits": {"MemoryBytes": 64 << 20}}}}
    assert not settler().judge(seen), "a test may have killed it"
    with pytest.raises(DeployError, match="it needed more than its limit of 64 MB") as caught:
        Settler("1", {}, str, out_of_memory=lambda tasks: list(tasks) == ["t1", "t2"]).judge(seen)
    assert caught.value.kind == "out_of_memory"
    assert caught.value.recipes_fault


def test_137_without_a_limit_is_asked_of_the_containers() -> None:
    killed = poll(task(1), task(2), task(3, "Ready", "", "Running"), running=0)
    assert not settler().judge(killed)
    with pytest.raises(DeployError, match="more memory than is available"):
        Settler("1", {}, str, out_of_memory=lambda tasks: list(tasks) == ["t1", "t2"]).judge(killed)


def test_the_version_has_to_be_the_one_that_was_deployed() -> None:
    seen = poll(RUNNING)
    seen.version = "1.0.0+1"
    assert Settler("1", {}, str, version="1.0.0+1").judge(seen)
    with pytest.raises(DeployError, match=r"The running version is 1\.0\.0\+1, not 1\.1\.0\+1") as caught:
        Settler("1", {}, str, version="1.1.0+1").judge(seen)
    assert caught.value.kind == "rolled_back"


def test_each_failure_is_told_once() -> None:
    said: list[str] = []
    judge = Settler("1", {}, str, tell=said.append).judge
    for _ in range(2):
        judge(poll(task(1), task(2, "Ready", "", "Running"), running=0))
    assert said == ["task of app failed: non-zero exit (1)"]


def test_a_service_may_fail_and_start_again_after_its_delay() -> None:
    again = task(2, "Ready", "", "Ready")
    judge = settler()
    assert not judge.judge(poll(task(1), again, running=0))
    with pytest.raises(DeployError, match="The service app failed"):
        judge.judge(poll(task(1), running=0))  # and nothing comes after it


def job(number: int, state: str, desired: str = "Complete", current: bool = True) -> Task:
    return Task(f"t{number}", NAME, desired, state, "", current)


_JOB = {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}}
_ONCE = {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}
_ONE: dict[str, Any] = {"Replicated": {"Replicas": 1}}


@pytest.mark.parametrize(
    ("mode", "condition", "tasks", "settled"),
    [
        (_ONCE, "any", [job(1, "Complete")], True),
        (_JOB, "any", [job(1, "Complete")], False),
        (_JOB, "any", [job(1, "Complete"), job(2, "Complete")], True),
        (_ONCE, "any", [job(1, "Complete", current=False), job(2, "Running")], False),  # of the deployment before
        (_ONCE, "on-failure", [job(1, "Failed", "Shutdown"), job(2, "Complete")], True),
        (_ONCE, "on-failure", [job(1, "Failed", "Shutdown"), job(2, "Running")], False),
        ({"GlobalJob": {}}, "any", [job(1, "Complete")], True),
        ({"GlobalJob": {}}, "any", [job(1, "Complete"), job(2, "Running")], False),  # on the other node
        ({"GlobalJob": {}}, "any", [job(1, "Failed", "Shutdown"), job(2, "Ready", "Ready")], False),
        (_ONE, "any", [job(1, "Complete", "Shutdown"), job(2, "Ready", "Ready")], False),  # which Swarm starts again
        (_ONE, "on-failure", [job(1, "Failed", "Shutdown"), job(2, "Complete", "Shutdown")], True),
        (_ONE, "none", [job(1, "Complete", "Shutdown")], True),
        (_ONE, "none", [job(1, "Complete", "Shutdown", current=False)], False),
        ({"Replicated": {"Replicas": 0}}, "none", [job(1, "Complete", "Shutdown", current=False)], True),
    ],
)
def test_a_job_is_through_when_its_tasks_are(mode: dict[str, Any], condition: str, tasks: list[Task], settled: bool) -> None:
    spec = {"Name": NAME, "Mode": mode, "TaskTemplate": {"RestartPolicy": {"Condition": condition}}}
    found = seen_service("app", {"Spec": spec}, tasks, {})
    assert (found.running == found.wanted) is settled
    seen = poll(*tasks)
    seen.services, seen.inspected = [found], {NAME: spec}
    assert settler().judge(seen) is settled
