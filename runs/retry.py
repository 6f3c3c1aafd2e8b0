"""What a retry runs, which results it takes over from the run that it repeats, and whether these still count."""

from __future__ import annotations

from uuid import UUID

from runs.harness import level
from runs.harness.protocol import CaseResult, Results, StageResult, Verdict
from runs.harness.stage_table import SHAPING, in_order
from runs.models import JUDGED, TestRun

#: What has to be the same in both runs, as it is called.
_SAME = {
    "version": "the version",
    "upgraded_from": "the version upgraded from",
    "kept": "the commit of the tests kept on this server",
    "settings": "a setting, or cc-ci's own version",
}


def asked(run: TestRun) -> tuple[str, ...]:
    """All stages that a run answers for, whoever ran them."""
    return in_order((*run.stages, *run.taken_over))


def plan(last: TestRun, *, trusted: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(stages to run, stages to take over) to repeat a run that ended. `trusted`: whether its code is trusted now.

    Taken over is what passed, was shown by a run with a verdict and a clean teardown, and leaves the app as it found it:
    *install* and *upgrade* make the app that later stages test. *backup* runs with *restore*. Nothing of a stranger's run.
    """
    stages = asked(last)
    rows = {row.name: row.status for row in last.stage_results.all()}
    known = last.state in JUDGED and last.trusted and trusted and last.teardown.get("clean") is True
    red = any(rows.get(name) not in ("passed", "not_applicable") for name in stages)
    if not (known and red and last.details.get("settings")):
        return stages, ()
    taken = tuple(name for name in stages if rows.get(name) == "passed" and name not in SHAPING)
    if "restore" in stages and "restore" not in taken:  # it looks for what the stage backup created and saved
        taken = tuple(name for name in taken if name != "backup")
    return tuple(name for name in stages if name not in taken), taken


def objection(run: TestRun, results: Results) -> str:
    """Why what a run took over does not count beside its own results; empty if it does."""
    before = run.retry_of
    if before is None:
        return "the run that it repeats was deleted"
    rows = before.stage_results.filter(name__in=run.taken_over, status="passed")
    if before.sha != run.sha or results.sha != run.sha or len(rows) != len(run.taken_over):
        return f"{before} does not have these results of this commit"
    if (before.deployer, before.sandbox) != (results.deployer, results.sandbox):
        return f"{before} was deployed or isolated in another way"
    for name, text in _SAME.items():
        if before.details.get(name, "") != getattr(results, name):
            return f"{text} differs from {before}"
    images = _images([image.model_dump() for image in results.images])
    if images is None or images != _images(before.details.get("images", [])):
        return f"the images differ from {before}, or have no digest"
    return ""


def _images(found: list[dict[str, str]]) -> set[tuple[str, str]] | None:
    """Names and digests. None if an image has no digest: it cannot be told from another one."""
    pairs = {(image["name"], image["digest"]) for image in found}
    return pairs if all(digest for _, digest in pairs) else None


def combined(run: TestRun, results: Results) -> tuple[Results, dict[str, UUID]]:
    """The results of a retry with those that it took over, and by which runs these were made.

    If they do not count, the run stands alone: it has no level, and cannot pass.
    """
    if why := objection(run, results):
        if results.verdict is not Verdict.PASSED:
            return results, {}
        reason = (
            f"{', '.join(run.taken_over)}: not run, and no longer taken over, because {why}. Run all stages: !testme retry all"
        )
        return results.model_copy(update={"verdict": Verdict.ERRORED, "reason": reason}), {}
    before = run.retry_of
    assert before is not None
    rows = list(before.stage_results.filter(name__in=run.taken_over).prefetch_related("cases"))
    taken = [
        StageResult(
            name=row.name,
            status="passed",
            reason=row.reason,
            proven=row.proven,
            seconds=row.seconds,
            started=row.started_at,
            finished=row.finished_at,
            cases=[
                CaseResult.model_validate(
                    {name: getattr(case, name) for name in ("name", "file", "status", "seconds", "message", "output")}
                )
                for case in row.cases.all()
            ],
        )
        for row in rows
    ]
    stages = {stage.name: stage for stage in (*results.stages, *taken)}
    leaks = sorted({*results.secret_leaks, *before.details.get("secret_leaks", [])})
    update = {
        "stages": [stages[name] for name in in_order(stages)],
        "secret_leaks": leaks,
        "level": level.assess(stages, results.lint, results.verdict, leaks),
    }
    return results.model_copy(update=update), {row.name: row.taken_from or before.pk for row in rows}
