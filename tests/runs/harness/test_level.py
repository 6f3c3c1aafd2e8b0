"""The ladder: each rung by itself, and that no level ever says more than was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.harness.level import LADDER, climb
from runs.harness.protocol import CaseResult, Level, LintFinding, StageResult, Verdict

ERROR = LintFinding(rule="C012", level="error", text="x")
WARNING = LintFinding(rule="C011", level="warning", text="x")
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
    stages: dict[str, StageResult | None] = {name: stage(name) for name in ("install", "upgrade", "backup", "restore", "custom")}
    stages.update(changes or {})
    return climb({name: result for name, result in stages.items() if result}, None if no_lint else lint or [], verdict)


def test_everything_passed() -> None:
    best = level()
    assert best.value == 5
    assert [(rung.level, rung.name, rung.status, rung.reason) for rung in best.rungs] == [
        (number, name, "climbed", "") for number, (name, _) in enumerate(LADDER, 1)
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("install", 0), ("upgrade", 1), ("backup", 2), ("restore", 2), ("custom", 3), ("extra", 3)]
)
@pytest.mark.parametrize("status", ["failed", "errored", "skipped", "not_run"])
def test_what_failed_or_did_not_run_stops_the_climb(name: str, value: int, status: str) -> None:
    found = level({name: stage(name, status, reason="because.")})
    assert found.value == value
    assert found.rungs[value].status == "stopped"
    assert name in found.rungs[value].reason and "because." in found.rungs[value].reason
    assert [rung.reason for rung in found.rungs[value + 1 :]] == [f"The climb ended at {LADDER[value][0]}."] * (4 - value)


@pytest.mark.parametrize(("name", "value"), [("install", 0), ("upgrade", 1), ("backup", 2), ("restore", 2), ("custom", 3)])
def test_what_was_not_asked_for_stops_the_climb(name: str, value: int) -> None:
    found = level({name: None})
    assert found.value == value
    assert found.rungs[value].reason == f"{name} was not asked for in this run."


def test_extra_tests_count_once_they_are_asked_for() -> None:
    assert level({"extra": stage("extra")}).value == 5
    assert level({"extra": stage("extra", "not_applicable", reason="There are none.")}).value == 5
    no_custom = stage("custom", "not_applicable", reason="There are none.")
    assert level({"custom": no_custom, "extra": stage("extra")}, [ERROR]).value == 4
    assert level({"extra": stage("extra", "failed")}).value == 3


def test_what_does_not_apply_is_passed_over_and_raises_nothing() -> None:
    nothing = {
        name: stage(name, "not_applicable", reason=f"No {name} here.") for name in ("upgrade", "backup", "restore", "custom")
    }
    found = level(nothing)
    assert found.value == 5
    assert [rung.status for rung in found.rungs] == ["climbed", "passed_over", "passed_over", "passed_over", "climbed"]
    assert found.rungs[2].reason == "backup: No backup here. restore: No restore here."
    assert level(nothing, [ERROR]).value == 1
    assert level({"install": stage("install", "not_applicable", reason="No."), **nothing}, [ERROR]).value == 0


def test_not_applicable_without_a_reason_or_with_skipped_tests_is_no_fact() -> None:
    assert level({"upgrade": stage("upgrade", "not_applicable")}).value == 1
    skipped = stage("custom", "not_applicable", reason="All tests were skipped.", cases=[SKIPPED])
    assert level({"custom": skipped}).value == 3


def test_a_backup_that_is_not_proven_ends_the_climb() -> None:
    for name in ("backup", "restore"):
        found = level({name: stage(name, proven=False, reason="made, not proven: give write_marker")})
        assert (found.value, found.rungs[2].status) == (2, "stopped")
        assert "not proven" in found.rungs[2].reason
    only_backup = {"restore": stage("restore", "not_applicable", reason="Only a dump."), "custom": None}
    assert level(only_backup).value == 2


def test_what_our_deployer_cannot_do_is_no_fact_of_the_recipe() -> None:
    found = level({"upgrade": stage("upgrade", "not_applicable", proven=False, reason="The deployer process cannot do it.")})
    assert (found.value, found.rungs[1].status) == (1, "stopped")
    assert found.rungs[1].reason == "upgrade did not run: The deployer process cannot do it."


def test_some_skipped_tests_are_told() -> None:
    found = level({"custom": stage("custom", cases=[SKIPPED, CaseResult(name="y", status="passed")])})
    assert (found.value, found.rungs[3].reason) == (5, "custom: 1 of 2 tests were skipped.")


def test_lint_and_the_invariants() -> None:
    assert level(lint=[WARNING]).value == 5
    found = level(lint=[ERROR, WARNING, ERROR])
    assert (found.value, found.rungs[4].reason) == (4, "Lint finds C012.")
    assert level(no_lint=True).value == 4
    for verdict in Verdict:
        assert level(verdict=verdict).value == (5 if verdict is Verdict.PASSED else 4)
    stages = {name: stage(name) for name in ("install", "upgrade", "backup", "restore", "custom")}
    leak = climb(stages, [], Verdict.PASSED, ["log.txt"])
    assert (leak.value, leak.rungs[4].reason) == (4, "A secret of the run stood in log.txt.")


#: From best to worst. (Of two that are alike, none raises the level above the other.)
RESULTS: list[dict[str, Any] | None] = [
    {"status": "passed"},
    {"status": "not_applicable", "reason": "No such thing."},
    {"status": "not_applicable", "reason": "Not by this deployer.", "proven": False},
    {"status": "passed", "proven": False},
    {"status": "failed"},
    {"status": "errored"},
    {"status": "skipped"},
    {"status": "not_run"},
    None,
]
WORSE_LINT: list[list[LintFinding] | None] = [[], [WARNING], [ERROR], None]
NAMES = ("install", "upgrade", "backup", "restore", "custom")
ranks = st.fixed_dictionaries({name: st.integers(0, len(RESULTS) - 1) for name in NAMES} | {"extra": st.integers(0, 7)})


def build(ranks: dict[str, int]) -> dict[str, StageResult]:
    return {name: StageResult(name=name, **given) for name, rank in ranks.items() if (given := RESULTS[rank]) is not None}


@given(ranks, st.sampled_from(WORSE_LINT), st.sampled_from(list(Verdict)))
def test_a_level_never_says_more_than_was_seen(ranks: dict[str, int], lint: list[LintFinding] | None, verdict: Verdict) -> None:
    stages = build(ranks)
    found = climb(stages, lint, verdict)
    assert [rung.level for rung in found.rungs] == [1, 2, 3, 4, 5]
    assert all(rung.status != "stopped" for rung in found.rungs[: found.value])
    assert found.value == 0 or found.rungs[found.value - 1].status == "climbed"
    for rung, (_, needed) in zip(found.rungs, LADDER, strict=True):
        if rung.status != "climbed":
            assert rung.reason
        elif needed:
            assert any(stages[name].status == "passed" and stages[name].proven for name in needed if name in stages)
    if not any(result.status == "passed" for result in stages.values()) and (lint is None or verdict is not Verdict.PASSED):
        assert found.value == 0


@given(ranks, st.integers(0, 3), st.data())
def test_nothing_that_gets_worse_raises_the_level(ranks: dict[str, int], lint: int, data: st.DataObject) -> None:
    before = climb(build(ranks), WORSE_LINT[lint], Verdict.PASSED)
    worse = dict(ranks)
    name = data.draw(st.sampled_from(sorted(ranks)))
    worse[name] = data.draw(st.integers(ranks[name], 7 if name == "extra" else len(RESULTS) - 1))
    worse_lint = WORSE_LINT[data.draw(st.integers(lint, 3))]
    verdict = data.draw(st.sampled_from(list(Verdict)))
    assert climb(build(worse), worse_lint, verdict).value <= before.value


def test_the_page_names_the_rungs() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "levels.md").read_text()
    for number, (name, _) in enumerate(LADDER, 1):
        assert f"| {number} | {name} |" in page
