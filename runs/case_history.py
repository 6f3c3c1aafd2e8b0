"""The history of a repository's tests: how often each case failed, and which ones are flaky.

A case is known by its stage, file and name in one repository. It is flaky if it both passed and did not pass on one commit. That
is shown beside its result; it never changes a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from runs.models import JUDGED, CaseResult, State, TestRun

#: Runs that a history covers at most, and runs among which these are looked for: a history costs the same however long it is.
RUNS, AMONG = 40, 200
#: Verdicts that are shown of a case.
SHOWN = 20
#: Rows read at most. Only a repository with thousands of tests has more; its oldest runs are left out.
MOST_ROWS = 20_000
FAILING = ("failed", "errored")


class Case(NamedTuple):
    stage: str
    file: str
    name: str


class Row(NamedTuple):
    """The result of a case in one run. `status`: passed, failed, errored; all others say nothing about it."""

    case: Case
    run: UUID
    at: datetime
    sha: str
    status: str


class Verdict(NamedTuple):
    run: UUID
    at: datetime
    sha: str
    passed: bool


def case_of(result: CaseResult) -> Case:
    return Case(result.stage.name, result.file, result.name)


@dataclass(frozen=True)
class CaseHistory:
    """Of one case. `verdicts`: the newest first, one for each run in which it passed or failed."""

    case: Case
    verdicts: tuple[Verdict, ...]

    @property
    def runs(self) -> int:
        return len(self.verdicts)

    @property
    def failed(self) -> int:
        return sum(not verdict.passed for verdict in self.verdicts)

    @property
    def changed(self) -> int:
        """The number of commits on which it both passed and failed."""
        passed = {verdict.sha for verdict in self.verdicts if verdict.passed}
        return len(passed & {verdict.sha for verdict in self.verdicts if not verdict.passed})

    @property
    def flaky(self) -> bool:
        return self.changed > 0

    @property
    def newest(self) -> tuple[Verdict, ...]:
        return self.verdicts[:SHOWN]

    @property
    def rate(self) -> str:
        """Such as `failed in 3 of 40 runs, 2 commits changed verdict`."""
        text = f"failed in {self.failed} of {self.runs} {'run' if self.runs == 1 else 'runs'}"
        return f"{text}, {self.changed} {'commit' if self.changed == 1 else 'commits'} changed verdict" if self.flaky else text


def histories(rows: Iterable[Row]) -> dict[Case, CaseHistory]:
    """The history of each case. Pure; the rows may come in any order. Two results in one run count once, as the worse one."""
    found: dict[Case, dict[UUID, Verdict]] = {}
    for row in rows:
        if row.status != "passed" and row.status not in FAILING:
            continue
        of_case = found.setdefault(row.case, {})
        earlier = of_case.get(row.run)
        passed = row.status == "passed" and (earlier is None or earlier.passed)
        of_case[row.run] = Verdict(row.run, row.at, row.sha, passed)
    return {
        case: CaseHistory(case, tuple(sorted(verdicts.values(), key=lambda verdict: (verdict.at, verdict.run), reverse=True)))
        for case, verdicts in found.items()
    }


def sorted_cases(found: Mapping[Case, CaseHistory]) -> list[CaseHistory]:
    """Flaky ones first, by how many commits changed verdict; then by how often they failed."""
    return sorted(found.values(), key=lambda row: (-row.changed, -row.failed, row.case))


def of_repository(repository_id: int, sha: str = "") -> dict[Case, CaseHistory]:
    """All cases of the repository's newest runs of trusted code.

    With `sha`, runs of a stranger's code at exactly that commit count as well. Those of other commits never do: with a test of
    the same name a stranger could excuse one that fails.
    """
    return histories(_rows(repository_id, sha))


def flaky(repository_id: int, sha: str = "") -> dict[Case, CaseHistory]:
    """Only the flaky ones, read with little work: most repositories have none."""
    found = histories(_rows(repository_id, sha, only_failing=True))
    return {case: history for case, history in found.items() if history.flaky}


def _rows(repository_id: int, sha: str, *, only_failing: bool = False) -> Iterator[Row]:
    """`only_failing`: leave out cases that never failed in these runs."""
    # On other data the same test may end differently, which makes it no flaky one.
    newest = TestRun.objects.filter(repository=repository_id, quick=False).order_by("-created_at")
    known = newest.values_list("pk", "state", "trusted", "sha")[:AMONG]
    judged = [pk for pk, state, trusted, commit in known if State(state) in JUDGED and (trusted or (sha and commit == sha))][
        :RUNS
    ]
    if not judged:
        return
    cases = CaseResult.objects.filter(stage__run__in=judged, stage__taken_from=None)  # what was taken over counts once
    if only_failing:
        names = set(cases.filter(status__in=FAILING).order_by().values_list("name", flat=True)[:MOST_ROWS])
        if not names:
            return
        cases = cases.filter(name__in=sorted(names)[:500])
    columns = ("stage__name", "file", "name", "stage__run", "stage__run__created_at", "stage__run__sha", "status")
    for stage, file, name, run, at, commit, status in (
        cases.filter(status__in=("passed", *FAILING)).order_by("-stage__run__created_at").values_list(*columns)[:MOST_ROWS]
    ):
        yield Row(Case(stage, file, name), run, at, commit, status)
