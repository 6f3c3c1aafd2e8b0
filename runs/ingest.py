"""Turns what a harness wrote into rows. Repeatable: events are unique by their number, results by their stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from enrollment.forges.http import storable
from runs import known_good, lifecycle, retry
from runs.executors.base import Observation
from runs.executors.local import LOG_BYTES, WHOLE_LOG
from runs.harness.protocol import Event, Results, Verdict
from runs.models import Artefact, CaseResult, RunEvent, StageResult, State, TestRun

EVENT_OF = {
    Verdict.PASSED: "pass",
    Verdict.FAILED: "fail",
    Verdict.ERRORED: "error",
    Verdict.CANCELLED: "cancel",
    Verdict.TIMED_OUT: "time_out",
}
#: The highest number that a column takes.
MOST = 2**31 - 1


def take_over(run: TestRun, seen: Observation) -> None:
    """Store new events and log lines, and the position reached, in one transaction."""
    events = [event for event in seen.events if 0 < event.seq <= MOST]
    if not events and not seen.log:
        return
    with transaction.atomic():
        locked = TestRun.objects.select_for_update().get(pk=run.pk)
        if (locked.attempt, locked.event_seq, locked.log_offset) != (run.attempt, run.event_seq, run.log_offset):
            run.refresh_from_db()
            return  # another worker was first
        RunEvent.objects.bulk_create([_row(run, event) for event in events], ignore_conflicts=True)
        run.event_seq = max([run.event_seq, *(event.seq for event in events)])
        run.log = (run.log + seen.log)[-LOG_BYTES:]
        run.log_offset = seen.log_offset
        run.save(update_fields=["event_seq", "log", "log_offset"])
        if any(event.kind in ("stage_started", "stage_finished") for event in events):
            lifecycle.run_moved.send(sender=TestRun, run=run)


def _row(run: TestRun, event: Event) -> RunEvent:
    return RunEvent(
        run=run,
        at=event.at,
        kind=event.kind[:30],
        stage=event.stage[:20],
        text=_storable(event.text, 2000),
        data=storable(event.data),
        attempt=run.attempt,
        seq=event.seq,
    )


def conclude(run: TestRun, results: Results, files: Mapping[str, bytes] | None = None) -> bool:
    """Finish a run: stages, cases, files and the move to its final state in one transaction. Returns whether this call did it."""
    taken_from: dict[str, UUID] = {}
    if run.taken_over:
        results, taken_from = retry.combined(run, results)
    event, reason = EVENT_OF[results.verdict], results.reason
    if results.verdict is Verdict.CANCELLED and run.stop_wanted:
        event = "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel"
        reason = run.stop_reason or reason
    with transaction.atomic():
        moved = lifecycle.move(
            run,
            event,
            reason,
            fence=run.attempt,
            reason=_storable(reason, 4000),
            deployer=results.deployer[:20],
            sandbox=results.sandbox[:50],
            warnings=[_storable(text, 1000) for text in results.warnings],
            teardown=results.teardown.model_dump(),
            level=min(max(results.level.value, 0), 5) if results.level else None,
            details=_details(results),
        )
        if moved:  # and so nobody else did, or will
            _store(run, results, files or {}, taken_from)
    if moved:
        known_good.adopt(run, results)
    return moved


def _store(run: TestRun, results: Results, files: Mapping[str, bytes], taken_from: Mapping[str, UUID]) -> None:
    Artefact.objects.bulk_create(_artefacts(run, results, files))
    rows = StageResult.objects.bulk_create(
        StageResult(
            run=run,
            name=stage.name[:20],
            order=order,
            status=stage.status,
            reason=_storable(stage.reason, 4000),
            proven=stage.proven,
            seconds=stage.seconds,
            started_at=stage.started,
            finished_at=stage.finished,
            taken_from=taken_from.get(stage.name),
        )
        for order, stage in enumerate(results.stages)
    )
    CaseResult.objects.bulk_create(
        CaseResult(
            stage=row,
            name=_storable(case.name, 500),
            file=_storable(case.file, 500),
            status=case.status,
            seconds=case.seconds,
            message=_storable(case.message, 4000),
            output=_storable(case.output, 20000),
        )
        for row, stage in zip(rows, results.stages, strict=True)
        for case in stage.cases
    )


#: The results without a row or column of their own.
_DETAILS = {
    "upgraded_from",
    "version",
    "images",
    "timings",
    "level",
    "lint",
    "metadata",
    "extras",
    "loosened",
    "settings",
    "kept",
    "known_good",
    "secret_leaks",
    "changed",
}


def _details(results: Results) -> dict[str, Any]:
    text = results.model_dump_json(include=_DETAILS)
    details: dict[str, Any] = json.loads(_storable(text.replace("\\u0000", "\\ufffd"), len(text)))
    return details


def _artefacts(run: TestRun, results: Results, files: Mapping[str, bytes]) -> list[Artefact]:
    known: dict[str, tuple[str, str]] = {file.name: (file.kind, file.title) for file in results.artefacts}
    known |= {"results.json": ("results", "Results (JSON)"), WHOLE_LOG: ("log", "The whole log")}
    return [
        Artefact(run=run, name=name, kind=kind, title=_storable(title, 120), bytes=len(files[name]), data=files[name])
        for name, (kind, title) in known.items()
        if name in files
    ]


def _storable(text: str, limit: int) -> str:
    """Untrusted text in a form that the database can store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()[:limit]
