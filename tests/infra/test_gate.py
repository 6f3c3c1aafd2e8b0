"""The gate: which version may come, why not another, and what lifts it. Each blocker has its test."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.gate import CUMULATIVE, OF_THE_VERSION, Evidence, GateFacts, Kind, Plan, Release, decide, evidence_of, manual_passages
from infra.schema import MANUAL_PATTERNS, Policy
from infra.versions import Version
from infra.window import Window

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
OLD = NOW - timedelta(days=30)


def V(text: str) -> Version:
    return Version.parse(text)


def release(version: str, **changes: Any) -> Release:
    """A harmless release of last month."""
    return Release(**{"version": V(version), "published_at": OLD, "notes": "Fixes a typo.", **changes})


def facts(*releases: Release, running: str = "1.0.0+2.0", **changes: Any) -> GateFacts:
    return GateFacts(**{"app": "web", "now": NOW, "running": V(running), "releases": releases, **changes})


def kinds(plan: Plan, version: str) -> set[Kind]:
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
    assert kinds(plan, "2.0.0+2.0") == kinds(plan, "2.0.1+2.0") == {Kind.LEFT_MAJOR}
    held = plan.verdict(V("2.0.1+2.0"))
    assert held and held.held
    assert held.blockers[0].version == "2.0.0+2.0", "where it comes first"
    assert "goes from 1 to 2" in held.blockers[0].text and "On the way, at 2.0.0+2.0" in held.blockers[0].text
    assert held.blockers[0].lift.endswith("cc-ci infra approve web 2.0.1+2.0")


# --- cumulative blockers


def test_a_left_major_by_policy() -> None:
    two = release("2.0.0+2.0")
    assert kinds(decide(facts(two)), "2.0.0+2.0") == {Kind.LEFT_MAJOR}
    assert decide(facts(two, policy=Policy(left_major="allow"))).takes == V("2.0.0+2.0")


def test_each_major_on_the_way_is_named() -> None:
    plan = decide(facts(release("2.0.0+2.0"), release("3.1.0+2.0")))
    verdict = plan.verdict(V("3.1.0+2.0"))
    assert verdict and [blocker.version for blocker in verdict.blockers] == ["2.0.0+2.0", "3.1.0+2.0"]


def test_a_right_major_by_policy() -> None:
    plan = decide(facts(release("1.0.1+2.9"), release("1.1.0+3.0"), release("1.1.1+3.0.1")))
    assert plan.takes == V("1.0.1+2.9")
    assert kinds(plan, "1.1.0+3.0") == kinds(plan, "1.1.1+3.0.1") == {Kind.RIGHT_MAJOR}
    assert decide(facts(release("1.1.0+3.0"), policy=Policy(right_major="allow"))).takes == V("1.1.0+3.0")


def test_a_right_major_that_went_back_still_lies_on_the_way() -> None:
    plan = decide(facts(release("1.1.0+3.0"), release("1.2.0+2.1")))
    assert plan.takes is None
    assert kinds(plan, "1.2.0+2.1") == {Kind.RIGHT_MAJOR}


def test_a_right_part_without_a_number() -> None:
    named = decide(facts(release("1.0.1+RELEASE.2026-02-01"), running="1.0.0+RELEASE.2026-01-01"))
    assert named.takes == V("1.0.1+RELEASE.2026-02-01"), "no number before and after: no major that could be told"
    text = decide(facts(release("1.0.1+social"))).verdicts[0].blockers[0].text
    assert text == "The app's own major goes from 2 to none that can be read."


def test_more_than_a_patch_by_policy() -> None:
    releases = release("1.0.1+2.0"), release("1.1.0+2.0"), release("1.1.1+2.0")
    plan = decide(facts(*releases, policy=Policy(auto="patch")))
    assert plan.takes == V("1.0.1+2.0")
    assert kinds(plan, "1.1.0+2.0") == kinds(plan, "1.1.1+2.0") == {Kind.BEYOND_AUTO}
    allowed = Policy(auto="patch", left_major="allow")
    plan = decide(facts(release("1.6.0+2.0"), release("2.0.0+2.0"), running="1.5.0+2.0", policy=allowed))
    assert kinds(plan, "2.0.0+2.0") == {Kind.BEYOND_AUTO}, "a major is more than a patch, whatever its second number"
    plan = decide(facts(*releases, policy=Policy(auto="none")))
    assert plan.takes is None
    assert kinds(plan, "1.0.1+2.0") == {Kind.BEYOND_AUTO}


def test_notes_on_the_way_that_speak_of_work_by_hand() -> None:
    notes = "# 1.0.2\n\nSome words.\nBefore upgrading, run `abra app cmd web migrate` by hand."
    plan = decide(facts(release("1.0.1+2.0"), release("1.0.2+2.0", notes=notes), release("1.0.3+2.0")))
    assert plan.takes == V("1.0.1+2.0")
    verdict = plan.verdict(V("1.0.3+2.0"))
    assert verdict
    [blocker] = verdict.blockers
    assert blocker.kind == Kind.MANUAL_WORK and blocker.version == "1.0.2+2.0"
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


@pytest.mark.parametrize(
    "line",
    [
        "This release needs manual migration of the database.",
        "Postgres must be dumped manually before.",
        "BREAKING: the config moved",
        "Action required!",
        "You must set SECRET_X_VERSION=v2.",
        "Operators need to run the helper",
        "After deploying run the purge",
        "abra app secret insert example.org token v1",
        "back up your database first",
        "change it by hand",
    ],
)
def test_words_that_mean_work(line: str) -> None:
    assert manual_passages(f"Hello\n{line}", MANUAL_PATTERNS)[0].line == 2


@pytest.mark.parametrize(
    "notes",
    ["", "Updates traefik to v3.5.", "No manual steps.", "Works without manual work; no action required.", "The manuals moved."],
)
def test_words_that_mean_none(notes: str) -> None:
    assert not manual_passages(notes, MANUAL_PATTERNS)


def test_long_lines_are_cut_around_the_word() -> None:
    [passage] = manual_passages("x" * 1000 + " by hand " + "y" * 5000, MANUAL_PATTERNS)
    assert len(passage.text) == 400
    assert passage.text[passage.start : passage.end] == "by hand"


def test_missing_notes_by_policy() -> None:
    releases = release("1.0.1+2.0", notes=None), release("1.0.2+2.0")
    assert decide(facts(*releases)).takes == V("1.0.2+2.0")
    plan = decide(facts(*releases, policy=Policy(missing_notes="hold")))
    assert plan.takes is None
    assert kinds(plan, "1.0.2+2.0") == {Kind.MISSING_NOTES}


# --- blockers of one version: those above it flow on


def alone(stopped: Release, kind: Kind, policy: Policy | None = None) -> str:
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
    return f"{blocker.text} {blocker.lift}"


PASSED = Evidence(True, "https://ci.example.org/runs/1/")


def test_younger_than_the_cooldown() -> None:
    young = release("1.0.2+2.0", published_at=NOW - timedelta(hours=30))
    assert alone(young, Kind.COOLDOWN) == "It is younger than 2d. By itself on 2026-11-24 21:00 UTC."
    assert decide(facts(young, policy=Policy(cooldown="1d"))).takes
    assert decide(replace(facts(young), now=NOW + timedelta(hours=18))).takes, "to the second"


def test_quarantined() -> None:
    words = alone(release("1.0.2+2.0", quarantined="it died in the soak."), Kind.QUARANTINED)
    assert words == "It is quarantined: it died in the soak. A newer version, or: cc-ci infra lift web 1.0.2+2.0"


def test_lint_failed() -> None:
    bad = release("1.0.2+2.0", evidence=Evidence(True, "", ("R014: a lightweight tag.", "R001: no name.")))
    assert alone(bad, Kind.LINT_FAILED).startswith("Its lint failed: R014: a lightweight tag. and 1 more")


def test_no_green_run() -> None:
    strict = Policy(need_test_run=True)
    assert "passed no test run" in alone(release("1.0.2+2.0"), Kind.NOT_TESTED, strict)
    failed = release("1.0.2+2.0", evidence=Evidence(False, "https://ci.example.org/runs/2/"))
    assert "did not pass: https://ci.example.org/runs/2/" in alone(failed, Kind.NOT_TESTED, strict)
    assert decide(facts(failed)).takes, "only where the policy asks for it"


def test_a_lightweight_tag() -> None:
    words = alone(release("1.0.2+2.0", annotated=False), Kind.NOT_ANNOTATED)
    assert "git tag -a -f 1.0.2+2.0 1.0.2+2.0^{}" in words


def test_notes_of_a_version_that_is_itself_stopped_still_count() -> None:
    plan = decide(facts(release("1.0.1+2.0", quarantined="x", notes="Migrate by hand."), release("1.0.2+2.0")))
    assert plan.takes is None
    assert kinds(plan, "1.0.2+2.0") == {Kind.MANUAL_WORK}


# --- blockers of the app

OF_THE_APP: dict[Kind, tuple[dict[str, Any], str]] = {
    Kind.MAINTAINERS: ({"ours": False, "by_hand": "abra app upgrade web.org"}, "They type: abra app upgrade web.org 1.0.1+2.0."),
    Kind.CONTESTED: ({"contested": "db has another image."}, "cc-ci infra adopt web, restore-ours web or hand-over web"),
    Kind.UNDER_WAY: ({"under_way": "1 → 2."}, "An upgrade is under way: 1 → 2."),
    Kind.ROLLBACK_FAILED: ({"rollback_failed": "no disk."}, "nothing was touched since: no disk."),
    Kind.SICK: ({"sick": "/ping answers 502."}, "It is not well as it is: /ping answers 502. Mend it first"),
    Kind.BUSY: ({"busy": "2 runs."}, "The machine is busy: 2 runs."),
    Kind.DISK: ({"disk": "3 GB are needed, 1 GB is free."}, "no room for a snapshot: 3 GB are needed"),
    Kind.OLD_IMAGE: ({"old_image": "nginx@sha256:1 is not on this machine."}, "The way back is not sure: nginx"),
    Kind.WINDOW: ({"window": Window.parse("Sat 02:00-05:00")}, "By itself on 2026-11-28 02:00 UTC, or at once with --now."),
}


@pytest.mark.parametrize("kind", OF_THE_APP)
def test_of_the_app(kind: Kind) -> None:
    changes, said = OF_THE_APP[kind]
    plan = decide(facts(release("1.0.1+2.0"), **changes))
    assert [blocker.kind for blocker in plan.blockers] == [kind]
    [blocker] = plan.blockers
    assert blocker.scope == "app"
    assert said in f"{blocker.text} {blocker.lift}"
    assert plan.target == V("1.0.1+2.0"), "what could come is shown all the same"
    assert plan.takes is None
    assert "1.0.1+2.0 could come, but" in str(plan)


def test_a_version_that_cannot_be_read() -> None:
    plan = decide(replace(facts(release("1.0.1+2.0")), running=None))
    assert [blocker.kind for blocker in plan.blockers] == [Kind.UNKNOWN_VERSION]
    assert plan.takes is None


def test_now_means_outside_the_window_only() -> None:
    window = Window.parse("Sat 02:00-05:00")
    assert decide(facts(release("1.0.1+2.0"), window=window, any_time=True)).takes
    assert decide(facts(release("1.0.1+2.0"), any_time=True, busy="2 runs.")).takes
    assert not decide(facts(release("1.0.1+2.0"), window=window, any_time=True, sick="x")).takes


def test_every_blocker_is_tried_here() -> None:
    tried = CUMULATIVE | OF_THE_VERSION | set(OF_THE_APP) | {Kind.UNKNOWN_VERSION}
    assert tried == set(Kind)


# --- approval


def approved(plan: Plan, version: str, **changes: Any) -> Release:
    """The release as it is once its blockers were approved as the plan shows them."""
    verdict = plan.verdict(V(version))
    assert verdict
    return release(version, lifted=frozenset(b.key for b in verdict.blockers if b.scope == "cumulative"), **changes)


def test_an_approval_is_for_that_version_only() -> None:
    one, two, three = release("1.0.1+2.0", notes="by hand"), release("2.0.0+2.0"), release("2.0.1+2.0")
    before = decide(facts(one, two, three))
    plan = decide(facts(one, approved(before, "2.0.0+2.0"), three))
    assert plan.takes == V("2.0.0+2.0")
    assert kinds(plan, "1.0.1+2.0") == {Kind.MANUAL_WORK}
    assert kinds(plan, "2.0.1+2.0") == {Kind.MANUAL_WORK, Kind.LEFT_MAJOR}
    verdict = plan.verdict(V("2.0.0+2.0"))
    assert verdict and {blocker.kind for blocker in verdict.lifted} == {Kind.MANUAL_WORK, Kind.LEFT_MAJOR}


def test_an_approval_lifts_what_was_shown_and_nothing_else() -> None:
    one, two = release("1.0.1+2.0", notes="by hand"), release("2.0.0+2.0", published_at=NOW)
    waiting = approved(decide(facts(one, two)), "2.0.0+2.0", published_at=NOW)
    assert kinds(decide(facts(one, waiting)), "2.0.0+2.0") == {Kind.COOLDOWN}
    other_words = release("1.0.1+2.0", notes="by hand, and you must weep")
    plan = decide(facts(other_words, waiting))
    assert kinds(plan, "2.0.0+2.0") == {Kind.COOLDOWN, Kind.MANUAL_WORK}, "the notes say more now"
    verdict = plan.verdict(V("2.0.0+2.0"))
    assert verdict and [blocker.kind for blocker in verdict.lifted] == [Kind.LEFT_MAJOR]
    between = release("1.5.0+2.0", notes="breaking")
    assert kinds(decide(facts(one, between, waiting)), "2.0.0+2.0") == {Kind.COOLDOWN, Kind.MANUAL_WORK}, "and one came between"


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
    """For the cumulative blockers. Those of a version (OF_THE_VERSION, by name) stop just that one."""
    plan = decide(situation)
    stopped = False
    for verdict in plan.verdicts:
        assert not (stopped and verdict.passes), str(plan)
        cumulative = {blocker.kind for blocker in verdict.blockers} - OF_THE_VERSION
        assert cumulative <= CUMULATIVE
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
    assert all(blocker.text and blocker.lift for verdict in plan.verdicts for blocker in verdict.blockers)


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
        changed = [replace(r, lifted=keys) if r.version == verdict.version else r for r in situation.releases]
        after = decide(replace(situation, releases=changed))
        for one, two in zip(before.verdicts, after.verdicts, strict=True):
            if one.version != verdict.version:
                assert one == two
            else:
                assert two.blockers == tuple(blocker for blocker in one.blockers if blocker.scope == "version")


def test_what_others_answer_of_tests() -> None:
    assert evidence_of(None) is None and evidence_of({}) is None
    assert evidence_of({"passed": True, "run": "u", "lint": ["R1: x"]}) == Evidence(True, "u", ("R1: x",))
    assert evidence_of({"passed": False}) == Evidence()
