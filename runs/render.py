"""Renders a run as Markdown for the forge. Pure: takes a run with its rows, returns text.

Text from outside (logs, test names, messages, names of people and repositories) is untrusted and is escaped with
`controlplane.untrusted`: `markdown` for a single line, `code_block` for output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from django.conf import settings
from django.urls import reverse

from controlplane.untrusted import code, code_block, commit, markdown, plain, shorten, web_address
from runs import commands
from runs.case_history import FAILING, Case, CaseHistory, case_of
from runs.deferred import registry
from runs.harness.protocol import NOT_REACHED, ExtraTest
from runs.harness.stage_table import DEFAULT_STAGES, STAGES, in_order
from runs.models import Artefact, CaseResult, StageResult, State, TestRun

MARK = {
    State.PASSED: "✅",
    State.FAILED: "❌",
    State.ERRORED: "⚠️",
    State.TIMED_OUT: "⏱️",
    State.CANCELLED: "🚫",
    State.SUPERSEDED: "⏭️",
    State.QUEUED: "🕓",
    State.AWAITING_APPROVAL: "🕓",
    State.STARTING: "🏃",
    State.RUNNING: "🏃",
}
STAGE_MARK = {
    "passed": "✅",
    "failed": "❌",
    "errored": "⚠️",
    "skipped": "➖",
    "not_applicable": "➖",
    "not_run": "➖",
    "running": "🏃",
}
HEADLINE = {
    State.PASSED: "passed",
    State.FAILED: "failed",
    State.ERRORED: "could not be completed (our fault, not the recipe's)",
    State.TIMED_OUT: "timed out",
    State.CANCELLED: "was cancelled",
    State.SUPERSEDED: "was superseded by a newer one",
    State.QUEUED: "is queued",
    State.AWAITING_APPROVAL: "is waiting for approval",
    State.STARTING: "is starting",
    State.RUNNING: "is running",
}
OLDER = f"⚠️ This is about an older commit; the pull request has changed since. To test the newest: `{commands.RUN.form}`"
#: Shown in full in a comment; the rest is on the page.
FAILURES = 5
MOST_NAMES = 20
TAIL_LINES = 30
#: Maximum characters of a comment at the forges. The rest is only on the page.
LONGEST = 60_000
#: Maximum characters of a status description at the forges.
DESCRIPTION = 255


def report(
    run: TestRun,
    *,
    place: int = 0,
    usual: float | None = None,
    earlier: TestRun | None = None,
    marker: str = "",
    flaky: Mapping[Case, CaseHistory] = MappingProxyType({}),
) -> str:
    """The comment about a run. `place`: its place in the queue. `usual`: the seconds that such a run takes. `earlier`: the run
    before it that was not stopped for it. `marker`: the hidden id, which comes first. `flaky`: the repository's flaky tests.
    """
    state = State(run.state)
    parts = [f"<!-- {marker} -->"] if marker else []
    kind = "quick test" if run.quick else "test"
    parts.append(f"### {MARK[state]} The {kind} of {markdown(run.repository.name)} at {_commit(run.sha)} {HEADLINE[state]}")
    if run.quick:
        parts.append(quick(run))
    if outdated(run):
        parts.append(OLDER)
    if line := " ".join(expectation(run, place, usual)):
        parts.append(line)
    if earlier is not None:
        parts.append(f"An earlier run, at {_commit(earlier.sha)}, {HEADLINE[State(earlier.state)]}: [details]({earlier.url})")
    if run.attempt > 1 and (before := again(run)):
        parts.append(f"This is attempt {run.attempt}. {markdown(before)}")
    if run.taken_over:
        parts.append(taken_over(run))
    if state == State.AWAITING_APPROVAL:
        parts.append(approval(run))
    stages = list(run.stage_results.prefetch_related("cases"))
    told = run.reason if state != State.PASSED else ""
    if told:
        parts.append(f"Reason: {markdown(told)}")
    if stages:
        parts.append(stage_table(stages, told))
    elif running := running_stages(run):
        parts.append(running)
    parts += failures(stages, told, flaky)
    parts += flaky_tests(run, stages, flaky)
    parts += warnings(run.warnings)
    parts += findings(run)
    return "\n\n".join([*_that_fit(parts, LONGEST - 1000), footer(run)]) + "\n"


def outdated(run: TestRun) -> bool:
    """Whether the pull request has another head now, as far as is known."""
    return run.pull_request is not None and run.pull_request.head_sha not in ("", run.sha)


def expectation(run: TestRun, place: int, usual: float | None) -> list[str]:
    """What somebody who waits may expect: the place in the queue, and how long such a run takes. Empty for one that ended."""
    if not run.active or run.state == State.AWAITING_APPROVAL:
        return []
    place = place if run.state == State.QUEUED else 0
    parts = ["It is next in the queue."] if place == 1 else [f"Its place in the queue is {place}."] if place else []
    return [*parts, f"Such a run usually takes {seconds(usual)}."] if usual else parts


def again(run: TestRun) -> str:
    """Why this is not the first attempt."""
    event = run.events.filter(kind=State.QUEUED, attempt=run.attempt).order_by("id").last()
    return f"{event.text[:1].upper()}{event.text[1:]}." if event else ""


def taken_over(run: TestRun) -> str:
    """Which stages a retry does not run, and whose results stand for them."""
    names = ", ".join(markdown(name) for name in run.taken_over)
    before = f"[{run.retry_of}]({run.retry_of.url})" if run.retry_of else "a run that was deleted"
    if run.active:
        return f"It runs only what failed in {before}; taken over, if the settings are the same: {names}."
    if run.stage_results.filter(taken_from__isnull=False).exists():
        return f"It ran only what failed in {before}; taken over: {names}."
    return f"It ran only what failed in {before}; not run: {names}."


@dataclass(frozen=True)
class Origin:
    """Where the data of a quick run comes from. Of the run only the id is known; it may have been deleted."""

    run: TestRun
    sha: str
    made: datetime


def origin(run: TestRun) -> Origin | None:
    """The data that a quick run started on; None if that is not known, or it started on none."""
    found = run.details.get("known_good")
    return Origin(TestRun(id=UUID(found["run_id"])), found["sha"], datetime.fromisoformat(found["made"])) if found else None


def quick(run: TestRun) -> str:
    """What a quick run is, and which data it started on as far as is known."""
    text = " It starts on the data of the default branch's last good run." if run.active else ""
    if data := origin(run):
        made = f"{data.made:%Y-%m-%d %H:%M}"
        text = f" It started on the data of [{data.run}]({data.run.url}) at {_commit(data.sha)}, saved on {made} UTC."
    return f"⚡ This is a quick run, which does not count for a merge.{text} A full test: `{commands.RUN.form}`"


def _that_fit(parts: Sequence[str], room: int) -> list[str]:
    """The parts that fit into `room` characters, with a note if some had to be left out."""
    kept = []
    for part in parts:
        if len(part) + 2 <= room:
            kept.append(part)
            room -= len(part) + 2
    return kept if len(kept) == len(parts) else [*kept, "The rest is too long for a comment; see the run's page."]


def warnings(texts: Sequence[str]) -> list[str]:
    more = [f"… and {len(texts) - MOST_NAMES} more on the page."] if len(texts) > MOST_NAMES else []
    return [f"⚠️ {markdown(text)}" for text in texts[:MOST_NAMES]] + more


def description(run: TestRun) -> str:
    """A one-line description of the run for the commit status. One of some stages only names them: its green is not of all."""
    stages = in_order((*run.stages, *run.taken_over))
    part = "" if set(stages) >= set(DEFAULT_STAGES) else f"; only {', '.join(stages)}"
    return plain(f"The test {HEADLINE[State(run.state)]}{part}.", DESCRIPTION)[:DESCRIPTION]


def approval(run: TestRun) -> str:
    """What a maintainer has to do about a run that awaits approval. The command names the commit; only that one is approved."""
    pull_url = run.pull_request.html_url if run.pull_request else ""
    return (
        f"{markdown(run.requested_by)}, who is not a maintainer, asked for this run, so it needs a maintainer's "
        f"approval. Please review {_changes(pull_url, run.sha)}, and if you approve, comment:\n\n{_approve(run.sha)}\n\nThis "
        "approves only this commit; later pushes need their own approval."
    )


def stage_table(stages: Sequence[StageResult], shown: str = "") -> str:
    """One row per stage. Omits a reason that is already in `shown`."""
    rows = ["| stage | result | tests | time |", "|---|---|---|---|"]
    for stage in stages:
        text = f"{STAGE_MARK.get(stage.status, '')} {markdown(stage.status.replace('_', ' '))}"
        if origin := stage.origin:
            text += f", taken over from [{origin}]({origin.url})"
        if stage.reason and stage.reason not in shown:
            text += f": {markdown(stage.reason, 200)}"
        rows.append(f"| {markdown(stage.name)} | {text} | {counts(stage.cases.all())} | {seconds(stage.seconds)} |")
    return "\n".join(rows)


def progress(run: TestRun) -> list[tuple[str, str]]:
    """(stage, status) pairs of a run that has no results yet: waiting, running, or what the harness reported."""
    status = dict.fromkeys(run.stages, "waiting")
    for event in run.events.filter(attempt=run.attempt, kind__in=["stage_started", "stage_finished"]).order_by("id"):
        if event.stage in status:
            status[event.stage] = "running" if event.kind == "stage_started" else str(event.data.get("status", "done"))
    return list(status.items())


def running_stages(run: TestRun) -> str:
    status = progress(run)
    if all(word == "waiting" for _, word in status):
        return ""
    rows = [f"| {markdown(name)} | {STAGE_MARK.get(word, '')} {markdown(word.replace('_', ' '))} |" for name, word in status]
    return "\n".join(["| stage | result |", "|---|---|", *rows])


def counts(cases: Iterable[CaseResult]) -> str:
    statuses = [case.status for case in cases]
    return (
        ", ".join(f"{statuses.count(name)} {name}" for name in ("failed", "errored", "passed", "skipped") if name in statuses)
        or "–"
    )


def failures(
    stages: Iterable[StageResult], shown: str = "", flaky: Mapping[Case, CaseHistory] = MappingProxyType({})
) -> list[str]:
    """The failing tests, each folded with its last lines; omits tests without output whose message is already in `shown`."""
    bad = [case for stage in stages for case in stage.cases.all() if case.status in FAILING]
    bad = [case for case in bad if case.output or not case.message or case.message not in shown]
    parts = []
    for case in bad[:FAILURES]:
        title = code(_test(case.file, case.name), 150) + (" (flaky)" if case_of(case) in flaky else "")
        output = code_block(tail(case.output or case.message))
        parts.append(f"<details><summary>❌ {title}</summary>\n\n{output}\n\n</details>")
    if len(bad) > FAILURES:
        parts.append(f"… and {len(bad) - FAILURES} more on the page.")
    return parts


def flaky_tests(run: TestRun, stages: Iterable[StageResult], flaky: Mapping[Case, CaseHistory]) -> list[str]:
    """The flaky tests among those of this run, failing ones first, each with its rate."""
    cases = [case for stage in stages for case in stage.cases.all() if case_of(case) in flaky]
    cases.sort(key=lambda case: case.status not in FAILING)
    if not cases:
        return []
    lines = [
        f"- {STAGE_MARK.get(case.status, '')} {code(_test(case.file, case.name), 150)}: flaky: {flaky[case_of(case)].rate}"
        for case in cases[:MOST_NAMES]
    ]
    more = [f"- … and {len(cases) - MOST_NAMES} more on the page"] if len(cases) > MOST_NAMES else []
    head = f"Tests that both passed and failed on one commit ([history]({settings.CC_CI.base_url}{run.tests_path})):"
    return ["\n".join([head, "", *lines, *more])]


def _test(file: str, name: str) -> str:
    return f"{file}::{name}" if file else name


def findings(run: TestRun) -> list[str]:
    """The other results: level, version upgraded from, loosened rules, tests not run, deferred tests, screenshot."""
    details = run.details
    if not details:
        return []
    parts = [line for line in (level(details, run.reason), versions(details)) if line]
    parts += warnings(details.get("loosened", []))
    if kept := details.get("kept"):
        parts.append(f"Tests kept on this server were added to the recipe's own, at {code(str(kept), 40)}.")
    if leaks := details.get("secret_leaks"):
        names = ", ".join(code(name, 150) for name in leaks[:MOST_NAMES]) + (" and more" if len(leaks) > MOST_NAMES else "")
        parts.append(f"⚠️ A secret of this run was printed, and has been redacted, in {names}.")
    parts += extra_tests(details.get("extras", {}))
    parts += closes(run)
    picture = run.artefacts.filter(kind=Artefact.Kind.PICTURE).defer("data").first()
    if picture and not run.repository.private:  # the forge's readers could not load a private one
        parts.append(f"<details><summary>The app</summary>\n\n![The app]({web_address(picture.url)})\n\n</details>")
    return parts


def once(text: str, shown: str) -> str:
    """Drops a remark's reason if it is already in `shown`: `install failed: why` becomes `install failed.`"""
    first, colon, why = text.partition(": ")
    return f"{first}." if colon and why and why in shown else text


def level(details: Mapping[str, Any], shown: str = "") -> str:
    """The level, and the first rung that was not reached. Empty for a partial run. `shown`: the run's own reason."""
    found = details.get("level") or {}
    if not found.get("rungs"):
        return ""
    text = f"Level **{int(found['value'])}** of 5"
    missed = next((rung for rung in found["rungs"] if rung["status"] in NOT_REACHED), None)
    if missed:
        why = f": {markdown(once(missed['reason'], shown), 200)}" if missed["reason"] else ""
        text += f"; rung {int(missed['level'])}, {markdown(missed['name'])}, was not reached{why}"
    return text if text.endswith((".", "…")) else f"{text}."


def versions(details: Mapping[str, Any]) -> str:
    if not details.get("upgraded_from"):
        return ""
    new = markdown(details.get("version") or "the commit", 150)
    return f"Deployed as {markdown(details['upgraded_from'], 150)}, then upgraded to {new}."


def extra_tests(extras: Mapping[str, Any]) -> list[str]:
    """How many extra tests were not run, and which of them cover files that this change touches."""
    count = extras.get("not_run", 0)
    if not count:
        return []
    text = f"{count} extra {'test was' if count == 1 else 'tests were'} not run."
    suggested = extras.get("suggested", [])
    if suggested:
        names = "\n".join(f"- {code(test['file'] + '::' + test['name'], 150)}" for test in suggested[:MOST_NAMES])
        more = f"\n- … and {len(suggested) - MOST_NAMES} more" if len(suggested) > MOST_NAMES else ""
        text += f" This change touches files covered by:\n\n{names}{more}\n\n"
    return [f"{text.rstrip(' ')} Run them with: `{commands.OPTIONS['--extra-tests'].form}`".replace("\n\n Run", "\n\nRun")]


def closes(run: TestRun) -> list[str]:
    """The entries of the deferred registry that this change would close."""
    if run.pull_request is None:
        return []
    tests = [ExtraTest.model_validate(test) for test in run.details.get("extras", {}).get("tests", [])]
    slugs = registry.would_close(run.repository.full_name, tests, run.details.get("changed", []))
    if not slugs:
        return []
    names = ", ".join(f"**{markdown(slug, 150)}**" for slug in slugs[:MOST_NAMES])
    tests_of, entries = ("test", "its entry") if len(slugs) == 1 else ("tests", "their entries")
    return [f"This change ports the deferred {tests_of} {names}; {entries} can be closed once it is merged."]


def footer(run: TestRun) -> str:
    who = f"Requested by {markdown(run.requested_by, 100)}." if run.requested_by else ""
    if run.active:
        return f"[Follow it live]({run.url}). {who} To stop it: `{commands.VERBS['cancel'].form}`".replace("  ", " ")
    took = f" It took {seconds(run.seconds)}." if run.seconds else ""
    return f"[Log and details]({run.url}).{took} {who} To run it again: `{to_repeat(run)}`".replace("  ", " ")


def to_repeat(run: TestRun) -> str:
    """The command that repeats a run. A quick one is repeated by another: a retry would repeat the run before it."""
    if run.quick:
        return commands.OPTIONS["--quick"].form
    return commands.VERBS[commands.RETRY_ALL if run.state == State.PASSED else "retry"].form


# --- scheduled runs


def issue_title(run: TestRun, what: str) -> str:
    return plain(f"The scheduled test of the {what} {HEADLINE[State(run.state)]}", 200)


def issue(run: TestRun, what: str, flaky: Mapping[Case, CaseHistory]) -> str:
    """The text of an issue about a scheduled run. `what`: what it tested."""
    stages = list(run.stage_results.prefetch_related("cases"))
    parts = [f"The scheduled test of the {markdown(what, 250)} at {_commit(run.sha)} {HEADLINE[State(run.state)]}."]
    if run.reason:
        parts.append(f"Reason: {markdown(run.reason)}")
    if stages:
        parts.append(stage_table(stages, run.reason))
    parts += failures(stages, run.reason, flaky)
    parts += flaky_tests(run, stages, flaky)
    end = f"[Log and details]({run.url}). cc-ci closes this issue when the scheduled test passes again."
    return "\n\n".join([*_that_fit(parts, LONGEST - 1000), end]) + "\n"


def issue_closing(run: TestRun, what: str) -> str:
    text = f"The scheduled test of the {markdown(what, 250)} at {_commit(run.sha)} passed again."
    return f"{text} [Log and details]({run.url}).\n"


# --- pieces


def tail(text: str) -> str:
    lines = [shorten(line, 300) for line in text.rstrip().splitlines()]
    return "\n".join(lines[-TAIL_LINES:])


def _commit(sha: str) -> str:
    return f"`{commit(sha)[:10]}`" if commit(sha) else "an unknown commit"


def _named(wanted: str) -> str:
    """What a person wrote as a commit id, as Markdown."""
    return f"`{wanted}`" if commit(wanted) else code(wanted, 64)


def _changes(pull_url: str, sha: str) -> str:
    """A link to the commit's changes, or plain text if the forge gave no valid address."""
    address = web_address(f"{pull_url}/commits/{commit(sha)}")
    return f"[that commit's changes]({address})" if address else "that commit's changes"


def _run_of(sha: str) -> str:
    return f"```\n!testme {commit(sha)}\n```"


def _approve(sha: str) -> str:
    return f"```\n!testme approve {commit(sha)}\n```"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


# --- replies


def reply_help() -> str:
    rows = [f"| `{entry.form}` | {entry.text} |" for entry in commands.table()]
    docs = f"{settings.CC_CI.base_url}{reverse('docs-index')}"
    more = f"What stages, verdicts, levels and extra tests are: [documentation]({docs})"
    return "\n".join(["Write one of these at the start of a line:", "", "| | |", "|---|---|", *rows, "", more])


def reply_problem(problem: commands.Problem) -> str:
    # Text between backticks is code, ours or a stranger's.
    text = [code(part, 100) if place % 2 else _spaced(part) for place, part in enumerate(problem.text.split("`"))]
    nearest = problem.nearest if _ours(problem.nearest) else commands.RUN.form
    return f"{''.join(text)} Nearest valid form:\n\n```\n{nearest}\n```\n\nAll forms: `{commands.VERBS['help'].form}`"


def _ours(line: str) -> bool:
    """Whether we suggested this line, rather than quoted it from a comment."""
    _, named, stages = line.partition("!testme --stages ")
    return line in {entry.form for entry in commands.table()} or bool(named and set(stages.split(",")) <= set(STAGES))


def _spaced(part: str) -> str:
    """Escapes part of a sentence and keeps the spaces around it."""
    before, after = part[:1].isspace(), part[1:][-1:].isspace()
    return f"{' ' * before}{markdown(part) if part.strip() else ''}{' ' * after}"


def reply_edited() -> str:
    return (
        "Your comment was edited before cc-ci first read it, so there is no telling who wrote what. Please write the "
        "command in a new comment."
    )


def reply_outsider(repository: str) -> str:
    return (
        f"Thank you. Only the owner of {markdown(repository)}, members of its organisation and collaborators can start "
        "runs; please ask one of them to comment the command here."
    )


def reply_unseen(repository: str) -> str:
    """For somebody who may be a member, if the forge does not let cc-ci check."""
    return (
        f"Thank you. cc-ci cannot check who may start runs of {markdown(repository)}, so nothing was started. Please "
        "ask whoever runs cc-ci to run `cc-ci doctor`, which shows the permission that its token lacks. Until that is "
        "fixed, the repository's owner or somebody on its allow-list can comment the command here."
    )


def reply_needs_sha(sha: str, pull_url: str) -> str:
    """The exact command to write, and a link to review what it would run."""
    return (
        "This code may come from somebody who is not a maintainer, and the forge cannot guarantee that it did not "
        f"change after your comment. Please review {_changes(pull_url, sha)}, and if you approve, "
        f"comment:\n\n{_run_of(sha)}"
    )


def reply_unknown_sha(wanted: str, head: str) -> str:
    return f"{_named(wanted)} is not a commit of this pull request. The newest is:\n\n{_run_of(head)}"


def reply_ambiguous_sha(wanted: str, head: str) -> str:
    return f"{_named(wanted)} is ambiguous; please write more digits:\n\n{_run_of(head)}"


def reply_approve_named(sha: str, pull_url: str) -> str:
    return (
        "An approval has to name the full commit id, so that it covers exactly the code you reviewed. Please review "
        f"{_changes(pull_url, sha)}, and if you approve, comment:\n\n{_approve(sha)}"
    )


def reply_approve_other(wanted: str, waiting: str, pull_url: str) -> str:
    return f"The waiting run is not for {_named(wanted)}. {reply_approve_named(waiting, pull_url)}"


def reply_closed() -> str:
    return "This pull request is closed; cc-ci tests only open ones."


def reply_quick_untrusted() -> str:
    return (
        "A quick run starts on the data and with the secrets of an earlier run, which are not for code that somebody outside "
        f"may have written. A full test starts with nothing of that:\n\n```\n{commands.RUN.form}\n```"
    )


def reply_nothing(verb: str) -> str:
    text = {
        "cancel": "There is no run to cancel.",
        "retry": "There is no run to repeat yet.",
        "status": "There are no runs yet.",
        "approve": "No run is waiting for approval.",
    }
    return f"{text[verb]} Start one with:\n\n```\n{commands.RUN.form}\n```"


def reply_passed(run: TestRun) -> str:
    return (
        f"The newest run, at {_commit(run.sha)}, passed, so nothing in it is left to repeat: [details]({run.url}). To run all "
        f"its stages again:\n\n```\n{commands.VERBS[commands.RETRY_ALL].form}\n```"
    )


def reply_status(run: TestRun, place: int, usual: float | None = None) -> str:
    state = State(run.state)
    text = f"{MARK[state]} The newest run, at {_commit(run.sha)}, {HEADLINE[state]}."
    if outdated(run):
        text += " The pull request has changed since."
    return " ".join([text, *expectation(run, place, usual), f"[Details]({run.url})"])
