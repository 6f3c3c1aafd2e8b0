"""The level of a recipe, 0 to 5: how far up the ladder one run was seen to climb. Pure; docs/levels.md says what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from runs.harness.protocol import Level, LintFinding, Rung, StageResult, Verdict

_OWN_TESTS = "the recipe's own tests"

#: The rungs from below, each with the stages it stands on. Lint, the last, stands on none.
LADDER = (
    ("install", ("install",)),
    ("upgrade", ("upgrade",)),
    ("backup and restore", ("backup", "restore")),
    (_OWN_TESTS, ("custom", "extra")),
    ("lint", ()),
)

Status = Literal["climbed", "passed_over", "stopped"]
_Step = tuple[Status, str]


def climb(
    stages: Mapping[str, StageResult],
    lint: Sequence[LintFinding] | None,
    verdict: Verdict,
    leaks: Sequence[str] = (),
) -> Level:
    """The level, with the reason beside each rung.

    `stages`: the results by name; one that is missing was not asked for. `lint`: its findings without the waived ones; None
    when it did not run. `leaks`: artefacts in which a secret stood. The value is the highest rung that was climbed with none
    stopped below it: what was passed over raises it never, and what was not seen stops it.
    """
    rungs: list[Rung] = []
    value, ended = 0, ""
    for number, (name, needed) in enumerate(LADDER, 1):
        if ended:
            rungs.append(Rung(level=number, name=name, status="stopped", reason=f"The climb ended at {ended}."))
            continue
        status, reason = _together(name, [_stage(stages, stage) for stage in needed]) if needed else _lint(lint, verdict, leaks)
        rungs.append(Rung(level=number, name=name, status=status, reason=reason))
        if status == "climbed":
            value = number
        elif status == "stopped":
            ended = name
    return Level(value=value, rungs=rungs)


def _stage(stages: Mapping[str, StageResult], name: str) -> _Step:
    result = stages.get(name)
    if result is None:
        # Extra tests are off by default: they count once they were asked for.
        return ("passed_over", "") if name == "extra" else ("stopped", f"{name} was not asked for in this run.")
    if result.status == "passed":
        if not result.proven:
            return "stopped", f"{name}: {result.reason or 'made, not proven'}"
        skipped = sum(case.status == "skipped" for case in result.cases)
        return "climbed", f"{name}: {skipped} of {len(result.cases)} tests were skipped." if skipped else ""
    if result.status == "not_applicable":
        if result.cases:  # there are tests, and none of them ran
            return "stopped", f"{name} should have run and did not: {result.reason or 'all its tests were skipped'}"
        if result.reason and not result.proven:  # a limit of ours, which says nothing of the recipe
            return "stopped", f"{name} did not run: {result.reason}"
        if result.reason:
            return "passed_over", f"{name}: {result.reason}"
        return "stopped", f"{name} did not run, and nobody said why."
    said = {"failed": "failed", "errored": "could not be judged"}.get(result.status, "should have run and did not")
    return "stopped", f"{name} {said}{f': {result.reason}' if result.reason else '.'}"


def _together(name: str, steps: Sequence[_Step]) -> _Step:
    """One rung of several stages: stopped by any of them. A backup without a restore is none; any own tests are own tests."""
    by_status: dict[Status, list[str]] = {"stopped": [], "passed_over": [], "climbed": []}
    for status, reason in steps:
        by_status[status].append(reason)
    enough = any if name == _OWN_TESTS else all
    status = "stopped" if by_status["stopped"] else "climbed" if enough(s == "climbed" for s, _ in steps) else "passed_over"
    return status, " ".join(reason for reason in by_status[status] if reason)


def _lint(lint: Sequence[LintFinding] | None, verdict: Verdict, leaks: Sequence[str]) -> _Step:
    """The last rung, with the invariants of the whole run: it passed (so its teardown was clean), and no secret got out."""
    if leaks:
        return "stopped", f"A secret of the run stood in {', '.join(leaks[:3])}."
    if verdict is not Verdict.PASSED:
        return "stopped", f"The run {'was ' if verdict is Verdict.CANCELLED else ''}{verdict.value.replace('_', ' ')}."
    if lint is None:
        return "stopped", "Lint did not run."
    errors = sorted({finding.rule for finding in lint if finding.level == "error"})
    if errors:
        return "stopped", f"Lint finds {', '.join(errors)}."
    return "climbed", ""
