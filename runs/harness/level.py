"""The level of a recipe, 0 to 5: the highest rung of the ladder that one run reached. Pure. See docs/verdicts.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from runs.harness.protocol import GENERIC, NOT_REACHED, Level, LintFinding, Rung, StageResult, Verdict
from runs.harness.stage_table import DEFAULT_STAGES, LADDER, OWN_TESTS

Status = Literal["reached", "failed", "not_tested", "does_not_apply"]
_Step = tuple[Status, str]


def assess(
    stages: Mapping[str, StageResult],
    lint: Sequence[LintFinding] | None,
    verdict: Verdict,
    leaks: Sequence[str] = (),
) -> Level | None:
    """The level, with a reason for each rung; None for a run of some stages only.

    `stages`: the results by name, of requested stages. `lint`: findings that are not waived; None if it did not run. `leaks`:
    artefacts with a secret in them. The value is the highest rung reached with none below it failed or not tested; rungs that
    do not apply never raise it.
    """
    if not stages.keys() >= set(DEFAULT_STAGES):
        return None
    rungs: list[Rung] = []
    value, climbing = 0, True
    for number, (name, needed) in enumerate(LADDER, 1):
        if name == OWN_TESTS:
            status, reason = _own_tests(stages, needed)
        elif needed:
            status, reason = _together([_stage(stages[stage]) for stage in needed if stage in stages])
        else:
            status, reason = _lint(lint, verdict, leaks)
        rungs.append(Rung(level=number, name=name, status=status, reason=reason))
        climbing = climbing and status not in NOT_REACHED
        if climbing and status == "reached":
            value = number
    return Level(value=value, rungs=rungs)


def _stage(result: StageResult) -> _Step:
    name = result.name
    if result.status == "passed":
        if not result.proven:
            return "not_tested", f"{name}: {result.reason or 'made, not proven'}"
        skipped = sum(case.status == "skipped" for case in result.cases)
        return "reached", f"{name}: {skipped} of {len(result.cases)} tests were skipped." if skipped else ""
    if result.status == "not_applicable":
        if result.cases:  # there are tests, and none of them ran
            return "not_tested", f"{name} should have run but did not: {result.reason or 'all its tests were skipped'}"
        if result.reason and result.proven:
            return "does_not_apply", f"{name}: {result.reason}"
        return (
            "not_tested",
            f"{name} did not run: {result.reason}" if result.reason else f"{name} did not run; no reason was given.",
        )
    if result.status == "skipped" and result.reason:  # several stages were, for the same reason
        return "not_tested", result.reason
    message = {"failed": "failed", "errored": "could not be judged"}.get(result.status, "should have run but did not")
    status: Status = "failed" if result.status == "failed" else "not_tested"
    return status, f"{name} {message}{f': {result.reason}' if result.reason else '.'}"


def _together(steps: Sequence[_Step]) -> _Step:
    """A rung that needs several stages: a backup without a restore does not count."""
    by_status: dict[Status, list[str]] = {"failed": [], "not_tested": [], "does_not_apply": [], "reached": []}
    for status, reason in steps:
        by_status[status].append(reason)
    status = next(status for status in by_status if by_status[status])
    return status, " ".join(dict.fromkeys(reason for reason in by_status[status] if reason))


def _own_tests(stages: Mapping[str, StageResult], needed: Sequence[str]) -> _Step:
    """The recipe's own tests, in whatever stage they ran."""
    steps = [_stage(stages[name]) for name in needed if name in stages and not _has_none(stages[name])]
    if any(status in NOT_REACHED for status, _ in steps):
        return _together(steps)
    passed = any(case.status == "passed" and case.file != GENERIC for result in stages.values() for case in result.cases)
    if passed:
        return "reached", " ".join(reason for status, reason in steps if status == "reached" and reason)
    return _together(steps or [_stage(stages["custom"])])


def _has_none(result: StageResult) -> bool:
    """Whether the recipe has no tests of its own in this stage; it may have some in others."""
    return result.status == "not_applicable" and not result.cases and not result.proven


def _lint(lint: Sequence[LintFinding] | None, verdict: Verdict, leaks: Sequence[str]) -> _Step:
    """The last rung: the whole run passed (so its teardown was clean), no secret leaked, and lint has no errors."""
    if leaks:
        return "failed", f"A secret of the run was found in {', '.join(leaks[:3])}."
    if verdict is not Verdict.PASSED:
        return "not_tested", f"The run {'was ' if verdict is Verdict.CANCELLED else ''}{verdict.value.replace('_', ' ')}."
    if lint is None:
        return "not_tested", "Lint did not run."
    errors = sorted({finding.rule for finding in lint if finding.level == "error"})
    if errors:
        return "failed", f"Lint found {', '.join(errors)}."
    return "reached", ""
