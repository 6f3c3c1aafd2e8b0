"""The ladder: each rung by itself, and that no level ever says more than was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.harness.level import assess
from runs.harness.protocol import CaseResult, Level, LintFinding, Rung, StageResult, Verdict
from runs.harness.stage_table import LADDER

ERROR = LintFinding(rule="C012", level="error", text="x")
WARNING = LintFinding(rule="C011", level="warning", text="x")
OWN = CaseResult(name="test_own", file="tests/test_own.py", status="passed")
NAMES = ("install", "upgrade", "backup", "restore", "custom")
SKIPPED = CaseResult(name="test_x", status="skipped")


def stage(name: str, status: str = "passed", **given: Any) -> StageResult:
    return StageResult.model_validate({"name": name, "status": status, **given})


def level(
    changes: dict[str, StageResult | None] | None = None,
    lint: list[LintFinding] | None = None,
    verdict: Verdict = Verdict.PASSED,
    no_lint: bool = False,
) -> Level:
    """The level of a run in which everything passed, but for the changes."""
    found = climbed(changes, lint, verdict, no_lint)
    assert found
    return found


def climbed(
    changes: dict[str, StageResult | None] | None = None,
    lint: list[LintFinding] | None = None,
    verdict: Verdict = Verdict.PASSED,
    no_lint: bool = False,
) -> Level | None:
    stages: dict[str, StageResult | None] = {name: stage(name) for name in ("install", "upgrade", "backup", "restore")}
    stages["custom"] = stage("custom", cases=[OWN])
    stages.update(changes or {})
    return assess({name: result for name, result in stages.items() if result}, None if no_lint else lint or [], verdict)


def test_everything_passed() -> None:
    best = level()
    assert best.value == 5
    assert [(rung.level, rung.name, rung.status, rung.reason) for rung in best.rungs] == [
        (number, name, "reached", "") for number, (name, _) in enumerate(LADDER, 1)
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("install", 0), ("upgrade", 1), ("backup", 2), ("restore", 2), ("custom", 3), ("extra", 3)]
)
@pytest.mark.parametrize("status", ["failed", "errored", "skipped", "not_run"])
def test_what_failed_or_did_not_run_is_not_reached(name: str, value: int, status: str) -> None:
    found = level({name: stage(name, status, reason="because.")})
    assert found.value == value
    assert found.rungs[value].status == ("failed" if status == "failed" else "not_tested")
    reason = found.rungs[value].reason
    assert reason == "because." if status == "skipped" else name in reason and "because." in reason
    above = found.rungs[value + 1 :]
    assert all((rung.status, rung.reason) == ("reached", "") for rung in above), "each rung says what the run showed of it"


def test_one_reason_for_several_stages_is_said_once() -> None:
    skipped = [stage(name, "skipped", reason="The stage upgrade failed.") for name in ("backup", "restore")]
    assert level({one.name: one for one in skipped}).rungs[2].reason == "The stage upgrade failed."


@pytest.mark.parametrize("name", ["install", "upgrade", "backup", "restore", "custom"])
def test_a_run_of_some_stages_has_no_level(name: str) -> None:
    assert climbed({name: None}) is None
    assert climbed({name: None, "extra": stage("extra", cases=[OWN])}) is None


NO_TESTS = stage("custom", "not_applicable", reason="The recipe has no tests of its own.", proven=False)


def test_the_recipes_own_tests_count_wherever_they_belong() -> None:
    assert (level({"custom": NO_TESTS}).value, level({"custom": NO_TESTS}).rungs[3].status) == (3, "not_tested")
    ours = CaseResult(name="the app answers", file="generic", status="passed")
    assert level({"custom": NO_TESTS, "install": stage("install", cases=[ours])}).value == 3
    assert level({"custom": NO_TESTS, "install": stage("install", cases=[ours, OWN])}).value == 5
    assert level({"custom": NO_TESTS, "extra": stage("extra", cases=[OWN])}).value == 5
    assert level({"custom": NO_TESTS, "install": stage("install", cases=[OWN]), "extra": stage("extra", "failed")}).value == 3
    declared = stage("custom", "not_applicable", reason="Declared in cc-ci.toml: it has no interface.")
    found = level({"custom": declared})
    assert (found.value, found.rungs[3].status) == (5, "does_not_apply")


def test_extra_tests_count_once_they_are_asked_for() -> None:
    assert level({"extra": stage("extra", cases=[OWN])}).value == 5
    assert level({"extra": stage("extra", "not_applicable", reason="There are none.", proven=False)}).value == 5
    assert level({"extra": stage("extra", "failed")}).value == 3


def test_what_does_not_apply_raises_nothing() -> None:
    nothing = {
        name: stage(name, "not_applicable", reason=f"No {name} here.") for name in ("upgrade", "backup", "restore", "custom")
    }
    found = level(nothing)
    assert found.value == 5
    assert [rung.status for rung in found.rungs] == ["reached", "does_not_apply", "does_not_apply", "does_not_apply", "reached"]
    assert found.rungs[2].reason == "backup: No backup here. restore: No restore here."
    assert level(nothing, [ERROR]).value == 1
    assert level({"install": stage("install", "not_applicable", reason="No."), **nothing}, [ERROR]).value == 0


def test_not_applicable_without_a_reason_or_with_skipped_tests_is_no_fact() -> None:
    assert level({"upgrade": stage("upgrade", "not_applicable")}).value == 1
    skipped = stage("custom", "not_applicable", reason="All tests were skipped.", cases=[SKIPPED])
    assert level({"custom": skipped}).value == 3


def test_a_backup_that_is_not_proven_is_not_reached() -> None:
    for name in ("backup", "restore"):
        found = level({name: stage(name, proven=False, reason="made, not proven: give write_marker")})
        assert (found.value, found.rungs[2].status) == (2, "not_tested")
        assert "not proven" in found.rungs[2].reason


def test_what_our_deployer_cannot_do_is_no_fact_of_the_recipe() -> None:
    found = level(
        {"upgrade": stage("upgrade", "not_applicable", proven=False, reason="The deployer process does not support it.")}
    )
    assert (found.value, found.rungs[1].status) == (1, "not_tested")
    assert found.rungs[1].reason == "upgrade did not run: The deployer process does not support it."


def test_some_skipped_tests_are_told() -> None:
    found = level({"custom": stage("custom", cases=[SKIPPED, OWN])})
    assert (found.value, found.rungs[3].reason) == (5, "custom: 1 of 2 tests were skipped.")


def test_lint_and_the_invariants() -> None:
    assert level(lint=[WARNING]).value == 5
    found = level(lint=[ERROR, WARNING, ERROR])
    assert (found.value, found.rungs[4].reason) == (4, "Lint found C012.")
    assert level(no_lint=True).value == 4
    for verdict in Verdict:
        assert level(verdict=verdict).value == (5 if verdict is Verdict.PASSED else 4)
    stages = {name: stage(name, cases=[OWN]) for name in NAMES}
    leak = assess(stages, [], Verdict.PASSED, ["log.txt"])
    assert leak
    assert (leak.value, leak.rungs[4].reason) == (4, "A secret of the run was found in log.txt.")


#: From best to worst. (Of two that are alike, none raises the level above the other.)
RESULTS: list[dict[str, Any]] = [
    {"status": "passed", "cases": [OWN]},
    {"status": "not_applicable", "reason": "No such thing."},
    {"status": "not_applicable", "reason": "Not by this deployer.", "proven": False},
    {"status": "passed", "proven": False},
    {"status": "failed"},
    {"status": "errored"},
    {"status": "skipped"},
    {"status": "not_run"},
]
WORSE_LINT: list[list[LintFinding] | None] = [[], [WARNING], [ERROR], None]
ranks = st.fixed_dictionaries({name: st.integers(0, len(RESULTS) - 1) for name in (*NAMES, "extra")})


def build(ranks: dict[str, int]) -> dict[str, StageResult]:
    return {name: StageResult(name=name, **RESULTS[rank]) for name, rank in ranks.items()}


@given(ranks, st.sampled_from(WORSE_LINT), st.sampled_from(list(Verdict)))
def test_a_level_never_says_more_than_was_shown(ranks: dict[str, int], lint: list[LintFinding] | None, verdict: Verdict) -> None:
    stages = build(ranks)
    found = assess(stages, lint, verdict)
    assert found
    assert [rung.level for rung in found.rungs] == [1, 2, 3, 4, 5]
    assert all(rung.status in ("reached", "does_not_apply") for rung in found.rungs[: found.value])
    assert found.value == 0 or found.rungs[found.value - 1].status == "reached"
    for rung, (_, needed) in zip(found.rungs, LADDER, strict=True):
        if rung.status != "reached":
            assert rung.reason
        elif rung.level < 4:
            assert all(stages[name].proven for name in needed)
            assert any(stages[name].status == "passed" for name in needed)
    if not any(result.status == "passed" for result in stages.values()) and (lint is None or verdict is not Verdict.PASSED):
        assert found.value == 0


@given(ranks, st.integers(0, 3), st.data())
def test_nothing_that_gets_worse_raises_the_level(ranks: dict[str, int], lint: int, data: st.DataObject) -> None:
    before = assess(build(ranks), WORSE_LINT[lint], Verdict.PASSED)
    worse = dict(ranks)
    name = data.draw(st.sampled_from(sorted(ranks)))
    worse[name] = data.draw(st.integers(ranks[name], len(RESULTS) - 1))
    worse_lint = WORSE_LINT[data.draw(st.integers(lint, 3))]
    verdict = data.draw(st.sampled_from(list(Verdict)))
    after = assess(build(worse), worse_lint, verdict)
    assert before and after
    assert after.value <= before.value


def test_the_page_names_the_rungs() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "verdicts.md").read_text()
    for number, (name, _) in enumerate(LADDER, 1):
        assert f"| {number} | {name} |" in page
    for status in Rung.model_fields["status"].annotation.__args__:  # type: ignore[union-attr]
        assert f"**{status.replace('_', ' ')}**" in page
    for verdict in Verdict:
        assert f"| {verdict.value.replace('_', ' ')} |" in page
