"""The gate: which version may come, why not another, and what lifts it. Each blocker has its test."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.time_window import Window
from infra.config.schema import Policy
from infra.recipe_version import Version
from infra.releases.gate import RULES, Evidence, GateFacts, Plan, Preflight, Release, Scope, decide, evidence_of

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
OLD = NOW - timedelta(days=30)


def V(text: str) -> Version:
    return Version.parse(text)


def release(version: str, **changes: Any) -> Release:
    """A harmless release of last month."""
    return Release(**{"version": V(version), "published_at": OLD, "notes": "Fixes a typo.", **changes})


def facts(*releases: Release, running: str = "1.0.0+2.0", **changes: Any) -> GateFacts:
    seen = Preflight(**{name: changes.pop(name) for name in list(changes) if name in Preflight.__dataclass_fields__})
    return GateFacts(**{"app": "web", "now": NOW, "running": V(running), "releases": releases, "preflight": seen, **changes})


def of_scope(scope: Scope) -> set[str]:
    return {rule.kind for rule in RULES if rule.scope == scope}


def kinds(plan: Plan, version: str) -> set[str]:
    verdict = plan.verdict(V(version))
    assert verdict
    return {blocker.kind for blocker in verdict.blockers}


def test_the_highest_that_passes() -> None:
    plan = decide(
        facts(release("1.0.2+2.0"), release("1.0.0+2.0"), release("0.9.0+1.9"), release("1.1.0+2.1"), release("1.0.1+2.0"))
    )
    assert plan.takes == plan.target == plan.newest == V("1.1.0+2.1")
    assert [str(verdict.version) for verdict in plan.verdicts] == ["1.0.1+2.0", "1.0.2+2.0", "1.1.0+2.1"]
    assert all(verdict.passes for verdict in plan.verdicts)
    assert str(plan) == "web: 1.0.0+2.0 → 1.1.0+2.1"


def test_nothing_newer() -> None:
    plan = decide(facts(release("1.0.0+2.0"), release("0.9.0+1.9")))
    assert plan.takes is None and plan.newest is None and not plan.blockers and not plan.verdicts
    assert str(plan) == "web: stays at 1.0.0+2.0"


def test_patches_flow_while_a_major_waits() -> None:
    plan = decide(facts(release("1.0.1+2.0"), release("2.0.0+2.0"), release("2.0.1+2.0")))
    assert plan.takes == V("1.0.1+2.0")
    assert kinds(plan, "2.0.0+2.0") == kinds(plan, "2.0.1+2.0") == {"left_major"}
    held = plan.verdict(V("2.0.1+2.0"))
    assert held and held.held
    assert held.blockers[0].version == "2.0.0+2.0", "where it comes first"
    assert "changes from 1 to 2" in held.blockers[0].text and "Introduced by 2.0.0+2.0" in held.blockers[0].text
    assert held.blockers[0].remedy.endswith("cc-ci infra approve web 2.0.1+2.0")


# --- cumulative blockers


def test_a_left_major_by_policy() -> None:
    two = release("2.0.0+2.0")
    assert kinds(decide(facts(two)), "2.0.0+2.0") == {"left_major"}
    assert decide(facts(two, policy=Policy(left_major="allow"))).takes == V("2.0.0+2.0")


def test_each_major_on_the_way_is_named() -> None:
    plan = decide(facts(release("2.0.0+2.0"), release("3.1.0+2.0")))
    verdict = plan.verdict(V("3.1.0+2.0"))
    assert verdict and [blocker.version for blocker in verdict.blockers] == ["2.0.0+2.0", "3.1.0+2.0"]


def test_a_right_major_by_policy() -> None:
    plan = decide(facts(release("1.0.1+2.9"), release("1.1.0+3.0"), release("1.1.1+3.0.1")))
    assert plan.takes == V("1.0.1+2.9")
    assert kinds(plan, "1.1.0+3.0") == kinds(plan, "1.1.1+3.0.1") == {"right_major"}
    assert decide(facts(release("1.1.0+3.0"), policy=Policy(right_major="allow"))).takes == V("1.1.0+3.0")


def test_a_right_major_that_went_back_still_lies_on_the_way() -> None:
    plan = decide(facts(release("1.1.0+3.0"), release("1.2.0+2.1")))
    assert plan.takes is None
    assert kinds(plan, "1.2.0+2.1") == {"right_major"}


def test_a_right_part_without_a_number() -> None:
    named = decide(facts(release("1.0.1+RELEASE.2026-02-01"), running="1.0.0+RELEASE.2026-01-01"))
    assert named.takes == V("1.0.1+RELEASE.2026-02-01"), "no number before and after: no major that could be told"
    text = decide(facts(release("1.0.1+social"))).verdicts[0].blockers[0].text
    assert text == "The app's major version changes from 2 to unknown."


def test_more_than_a_patch_by_policy() -> None:
    releases = release("1.0.1+2.0"), release("1.1.0+2.0"), release("1.1.1+2.0")
    plan = decide(facts(*releases, policy=Policy(auto="patch")))
    assert plan.takes == V("1.0.1+2.0")
    assert kinds(plan, "1.1.0+2.0") == kinds(plan, "1.1.1+2.0") == {"beyond_auto"}
    allowed = Policy(auto="patch", left_major="allow")
    plan = decide(facts(release("1.6.0+2.0"), release("2.0.0+2.0"), running="1.5.0+2.0", policy=allowed))
    assert kinds(plan, "2.0.0+2.0") == {"beyond_auto"}, "a major is more than a patch, whatever its second number"
    plan = decide(facts(*releases, policy=Policy(auto="none")))
    assert plan.takes is None
    assert kinds(plan, "1.0.1+2.0") == {"beyond_auto"}


def test_notes_on_the_way_that_speak_of_work_by_hand() -> None:
    notes = "# 1.0.2\n\nSome words.\nBefore upgrading, run `abra app cmd web migrate` by hand."
    plan = decide(facts(release("1.0.1+2.0"), release("1.0.2+2.0", notes=notes), release("1.0.3+2.0")))
    assert plan.takes == V("1.0.1+2.0")
    verdict = plan.verdict(V("1.0.3+2.0"))
    assert verdict
    [blocker] = verdict.blockers
    assert blocker.kind == "manual_work" and blocker.version == "1.0.2+2.0"
    [passage] = blocker.passages
    assert passage.line == 4
    assert passage.text[passage.start : passage.end] == "Before upgrading"
    assert "“Before upgrading, run" in blocker.text


def test_patterns_of_the_policy() -> None:
    one = release("1.0.1+2.0", notes="ATTENTION\nby hand")
    policy = Policy(manual_patterns=("attention",))
    [blocker] = decide(facts(one, policy=policy)).verdicts[0].blockers
    assert [passage.text for passage in blocker.passages] == ["ATTENTION"], "those of the policy take the place of ours"
    assert decide(facts(one, policy=Policy(manual_patterns=()))).takes


def test_missing_notes_by_policy() -> None:
    releases = release("1.0.1+2.0", notes=None), release("1.0.2+2.0")
    assert decide(facts(*releases)).takes == V("1.0.2+2.0")
    plan = decide(facts(*releases, policy=Policy(missing_notes="hold")))
    assert plan.takes is None
    assert kinds(plan, "1.0.2+2.0") == {"missing_notes"}


# --- blockers of one version: those above it flow on


def alone(stopped: Release, kind: str, policy: Policy | None = None) -> str:
    """This release is stopped by that alone, and the next one is not. Returns the words and what lifts it."""
    plan = decide(
        facts(release("1.0.1+2.0", evidence=PASSED), stopped, release("1.0.3+2.0", evidence=PASSED), policy=policy or Policy())
    )
    assert kinds(plan, "1.0.2+2.0") == {kind}
    assert plan.takes == V("1.0.3+2.0")
    verdict = plan.verdict(V("1.0.2+2.0"))
    assert verdict and not verdict.held
    [blocker] = verdict.blockers
    assert blocker.scope == "version"
    without = decide(facts(release("1.0.1+2.0", evidence=PASSED), stopped, policy=policy or Policy()))
    assert without.takes == V("1.0.1+2.0"), "the one below comes instead"
    return f"{blocker.text} {blocker.remedy}"


PASSED = Evidence(True, "https://ci.example.org/runs/1/")


def test_younger_than_the_cooldown() -> None:
    young = release("1.0.2+2.0", published_at=NOW - timedelta(hours=30))
    assert alone(young, "cooldown") == "It is less than 2d old. Wait until 2026-11-24 21:00 UTC."
    assert decide(facts(young, policy=Policy(cooldown="1d"))).takes
    assert decide(replace(facts(young), now=NOW + timedelta(hours=18))).takes, "to the second"


def test_quarantined() -> None:
    words = alone(release("1.0.2+2.0", quarantined="it died in the soak."), "quarantined")
    assert (
        words
        == "It is quarantined: it died in the soak. Wait for a newer version, or release this one: cc-ci infra lift web 1.0.2+2.0"
    )


def test_lint_failed() -> None:
    bad = release("1.0.2+2.0", evidence=Evidence(True, "", ("R014: a lightweight tag.", "R001: no name.")))
    assert alone(bad, "lint_failed").startswith("It failed lint: R014: a lightweight tag. and 1 more")


def test_no_green_run() -> None:
    strict = Policy(need_test_run=True)
    assert "not passed a test run" in alone(release("1.0.2+2.0"), "not_tested", strict)
    failed = release("1.0.2+2.0", evidence=Evidence(False, "https://ci.example.org/runs/2/"))
    assert "did not pass: https://ci.example.org/runs/2/" in alone(failed, "not_tested", strict)
    assert decide(facts(failed)).takes, "only where the policy asks for it"


def test_a_lightweight_tag() -> None:
    words = alone(release("1.0.2+2.0", annotated=False), "not_annotated")
    assert "git tag -a -f 1.0.2+2.0 1.0.2+2.0^{}" in words


def test_notes_of_a_version_that_is_itself_stopped_still_count() -> None:
    plan = decide(facts(release("1.0.1+2.0", quarantined="x", notes="Migrate by hand."), release("1.0.2+2.0")))
    assert plan.takes is None
    assert kinds(plan, "1.0.2+2.0") == {"manual_work"}


# --- blockers of the app

OF_THE_APP: dict[str, tuple[dict[str, Any], str]] = {
    "maintainers": ({"ours": False, "by_hand": "abra app upgrade web.org"}, "They run: abra app upgrade web.org 1.0.1+2.0."),
    "contested": ({"drift": "db has another image."}, "cc-ci infra adopt web, restore-ours web or hand-over web"),
    "under_way": ({"under_way": "1 → 2."}, "An upgrade is already running: 1 → 2."),
    "rollback_failed": ({"rollback_failed": "no disk."}, "nothing has been touched since: no disk."),
    "sick": ({"unhealthy": "/ping answers 502."}, "The app is already unhealthy: /ping answers 502. Fix this first"),
    "busy": ({"busy": "2 runs."}, "The host is busy: 2 runs."),
    "disk": ({"disk": "3 GB are needed, 1 GB is free."}, "Not enough space for a snapshot: 3 GB are needed"),
    "old_image": ({"old_image": "nginx@sha256:1 is missing on this host."}, "Rollback is not possible: nginx"),
    "window": ({"window": Window.parse("Sat 02:00-05:00")}, "Wait until 2026-11-28 02:00 UTC, or use --now."),
}


@pytest.mark.parametrize("kind", OF_THE_APP)
def test_of_the_app(kind: str) -> None:
    changes, said = OF_THE_APP[kind]
    plan = decide(facts(release("1.0.1+2.0"), **changes))
    assert [blocker.kind for blocker in plan.blockers] == [kind]
    [blocker] = plan.blockers
    assert blocker.scope == "app"
    assert said in f"{blocker.text} {blocker.remedy}"
    assert plan.target == V("1.0.1+2.0"), "what could come is shown all the same"
    assert plan.takes is None
    assert "1.0.1+2.0 is available, but" in str(plan)


def test_a_version_that_cannot_be_read() -> None:
    plan = decide(replace(facts(release("1.0.1+2.0")), running=None))
    assert [blocker.kind for blocker in plan.blockers] == ["unknown_version"]
    assert plan.takes is None


def test_now_means_outside_the_window_only() -> None:
    window = Window.parse("Sat 02:00-05:00")
    assert decide(facts(release("1.0.1+2.0"), window=window, any_time=True)).takes
    assert decide(facts(release("1.0.1+2.0"), any_time=True, busy="2 runs.")).takes
    assert not decide(facts(release("1.0.1+2.0"), window=window, any_time=True, unhealthy="x")).takes


def test_every_blocker_is_tried_here() -> None:
    assert set(OF_THE_APP) | {"unknown_version"} == of_scope("app")


# --- approval


def approved(plan: Plan, version: str, **changes: Any) -> Release:
    """The release as it is once its blockers were approved as the plan shows them."""
    verdict = plan.verdict(V(version))
    assert verdict
    return release(version, waived=frozenset(b.key for b in verdict.blockers if b.scope == "cumulative"), **changes)


def test_an_approval_is_for_that_version_only() -> None:
    one, two, three = release("1.0.1+2.0", notes="by hand"), release("2.0.0+2.0"), release("2.0.1+2.0")
    before = decide(facts(one, two, three))
    plan = decide(facts(one, approved(before, "2.0.0+2.0"), three))
    assert plan.takes == V("2.0.0+2.0")
    assert kinds(plan, "1.0.1+2.0") == {"manual_work"}
    assert kinds(plan, "2.0.1+2.0") == {"manual_work", "left_major"}
    verdict = plan.verdict(V("2.0.0+2.0"))
    assert verdict and {blocker.kind for blocker in verdict.waived} == {"manual_work", "left_major"}


def test_an_approval_lifts_what_was_shown_and_nothing_else() -> None:
    one, two = release("1.0.1+2.0", notes="by hand"), release("2.0.0+2.0", published_at=NOW)
    waiting = approved(decide(facts(one, two)), "2.0.0+2.0", published_at=NOW)
    assert kinds(decide(facts(one, waiting)), "2.0.0+2.0") == {"cooldown"}
    other_words = release("1.0.1+2.0", notes="by hand, and you must weep")
    plan = decide(facts(other_words, waiting))
    assert kinds(plan, "2.0.0+2.0") == {"cooldown", "manual_work"}, "the notes say more now"
    verdict = plan.verdict(V("2.0.0+2.0"))
    assert verdict and [blocker.kind for blocker in verdict.waived] == ["left_major"]
    between = release("1.5.0+2.0", notes="breaking")
    assert kinds(decide(facts(one, between, waiting)), "2.0.0+2.0") == {"cooldown", "manual_work"}, "and one came between"


def test_an_approval_outlives_a_patch_that_comes_first() -> None:
    one, two = release("1.0.1+2.0"), release("2.0.0+2.0")
    waiting = approved(decide(facts(one, two)), "2.0.0+2.0")
    assert decide(facts(one, waiting, running="1.0.1+2.0")).takes == V("2.0.0+2.0")


def test_what_is_taken_beyond_the_policy_flows_on_from_there() -> None:
    assert decide(facts(release("2.0.1+2.0"), running="2.0.0+2.0")).takes == V("2.0.1+2.0")


# --- properties

numbers = st.integers(0, 3)
versions = st.builds(
    "{}.{}.{}+{}".format, numbers, numbers, numbers, st.sampled_from(["1.0", "1.5", "2.0", "2.0-rc1", "v3", "social"])
)
holds = st.sampled_from(["hold", "allow"])
policies = st.builds(
    Policy,
    auto=st.sampled_from(["none", "patch", "minor"]),
    left_major=holds,
    right_major=holds,
    missing_notes=holds,
    need_test_run=st.booleans(),
)
releases = st.builds(
    Release,
    version=versions.map(Version.parse),
    published_at=st.sampled_from([OLD, NOW]),
    annotated=st.sampled_from([True, True, False]),
    notes=st.sampled_from([None, "A typo.", "A typo.", "Do it by hand."]),
    quarantined=st.sampled_from(["", "", "it died."]),
    evidence=st.sampled_from([None, PASSED, Evidence(False, "x"), Evidence(True, "x", ("R1",))]),
)
situations = st.builds(
    GateFacts,
    app=st.just("web"),
    now=st.just(NOW),
    running=versions.map(Version.parse),
    releases=st.lists(releases, max_size=8, unique_by=lambda one: one.version),
    policy=policies,
)


@given(situations)
def test_no_version_passes_above_one_that_is_stopped_for_all_above(situation: GateFacts) -> None:
    """For the cumulative blockers. Those of a version stop just that one."""
    plan = decide(situation)
    stopped = False
    for verdict in plan.verdicts:
        assert not (stopped and verdict.passes), str(plan)
        cumulative = {blocker.kind for blocker in verdict.blockers} - of_scope("version")
        assert cumulative <= of_scope("cumulative")
        assert not stopped or cumulative, "and it says so"
        stopped = stopped or bool(cumulative)


@given(situations)
def test_the_highest_that_passes_and_never_a_lower_one_than_runs(situation: GateFacts) -> None:
    plan = decide(situation)
    assert situation.running
    passing = [verdict.version for verdict in plan.verdicts if verdict.passes]
    assert plan.takes == max(passing, default=None)
    assert all(verdict.version > situation.running for verdict in plan.verdicts)
    assert [verdict.version for verdict in plan.verdicts] == sorted(
        r.version for r in situation.releases if r.version > situation.running
    )
    assert all(blocker.text and blocker.remedy for verdict in plan.verdicts for blocker in verdict.blockers)


@given(situations, st.randoms())
def test_the_order_in_which_releases_are_told_does_not_matter(situation: GateFacts, random: Any) -> None:
    shuffled = list(situation.releases)
    random.shuffle(shuffled)
    assert decide(replace(situation, releases=shuffled)) == decide(situation)


@given(situations)
def test_approving_lifts_the_cumulative_blockers_of_that_version_and_changes_no_other(situation: GateFacts) -> None:
    before = decide(situation)
    for verdict in before.verdicts:
        keys = frozenset(blocker.key for blocker in verdict.blockers if blocker.scope == "cumulative")
        changed = [replace(r, waived=keys) if r.version == verdict.version else r for r in situation.releases]
        after = decide(replace(situation, releases=changed))
        for one, two in zip(before.verdicts, after.verdicts, strict=True):
            if one.version != verdict.version:
                assert one == two
            else:
                assert two.blockers == tuple(blocker for blocker in one.blockers if blocker.scope == "version")


def test_the_docs_show_the_list() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "infra.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| (it and all above|that version|the app) \|", text, re.MULTILINE)
    stops = {"cumulative": "it and all above", "version": "that version", "app": "the app"}
    assert shown == [(rule.kind, stops[rule.scope]) for rule in RULES]


def test_what_others_answer_of_tests() -> None:
    assert evidence_of(None) is None and evidence_of({}) is None
    assert evidence_of({"passed": True, "run": "u", "lint": ["R1: x"]}) == Evidence(True, "u", ("R1: x",))
    assert evidence_of({"passed": False}) == Evidence()
