"""A run as Markdown for the forge. Pure: a run with its rows in, text out.

Text from outside (logs, test names, messages, names of people and repositories) is data, and goes through
`controlplane.untrusted`: through `markdown` where it is one line, and through `code_block` where it is output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.untrusted import code, code_block, commit, markdown, plain, shorten, web_address
from runs import chatops, deferred
from runs.harness.protocol import STAGES, ExtraTest
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
    State.ERRORED: "could not be tested (our side, not the recipe's)",
    State.TIMED_OUT: "took too long",
    State.CANCELLED: "was cancelled",
    State.SUPERSEDED: "was overtaken by a newer one",
    State.QUEUED: "is waiting for its turn",
    State.AWAITING_APPROVAL: "is waiting for approval",
    State.STARTING: "is starting",
    State.RUNNING: "is running",
}
#: Shown in full in a comment; the rest is on the page.
FAILURES = 5
MOST_NAMES = 20
TAIL_LINES = 30
#: Characters of a comment: what forges take. What is beyond it is left to the page.
LONGEST = 60_000
#: Characters of a status's description that forges take.
DESCRIPTION = 255


def report(run: TestRun, *, ahead: int = 0, marker: str = "") -> str:
    """The comment about a run. `ahead`: how many runs are before it. `marker`: the hidden id, put first."""
    state = State(run.state)
    parts = [f"<!-- {marker} -->"] if marker else []
    parts.append(f"### {MARK[state]} The test of {markdown(run.repository.name)} at {_commit(run.sha)} {HEADLINE[state]}")
    if state == State.QUEUED and ahead:
        parts.append(f"{ahead} {'run is' if ahead == 1 else 'runs are'} ahead of it.")
    if state == State.AWAITING_APPROVAL:
        parts.append(approval(run))
    stages = list(run.stage_results.all())
    # The table gives the reason of a stage that failed; twice would be noise.
    if run.reason and state != State.PASSED and not any(stage.reason and stage.reason in run.reason for stage in stages):
        parts.append(f"Reason: {markdown(run.reason)}")
    if stages:
        parts.append(stage_table(stages))
    elif running := running_stages(run):
        parts.append(running)
    parts += failures(stages)
    parts += warnings(run.warnings)
    parts += findings(run)
    return "\n\n".join([*_that_fit(parts, LONGEST - 1000), footer(run)]) + "\n"


def _that_fit(parts: Sequence[str], room: int) -> list[str]:
    """The parts that fit into so many characters, with a word on it where some do not."""
    kept = []
    for part in parts:
        if len(part) + 2 <= room:
            kept.append(part)
            room -= len(part) + 2
    return kept if len(kept) == len(parts) else [*kept, "The rest is too long for a comment, and is on the page."]


def warnings(texts: Sequence[str]) -> list[str]:
    more = [f"… and {len(texts) - MOST_NAMES} more on the page."] if len(texts) > MOST_NAMES else []
    return [f"⚠️ {markdown(text)}" for text in texts[:MOST_NAMES]] + more


def description(run: TestRun) -> str:
    """The run in a line, for the commit's status."""
    return plain(f"The test {HEADLINE[State(run.state)]}.", DESCRIPTION)[:DESCRIPTION]


def approval(run: TestRun) -> str:
    """What a maintainer has to do about a run that waits. The line names the commit: it counts for that one alone."""
    pull_url = run.pull_request.html_url if run.pull_request else ""
    return (
        f"It was asked for by {markdown(run.requested_by)}, who is not a maintainer, so somebody who is has to look first. "
        f"Please read {_changes(pull_url, run.sha)}, and if they are fine, write:\n\n{_approve(run.sha)}\n\n"
        "It counts for this commit only; what is pushed later needs an approval of its own."
    )


def stage_table(stages: Sequence[StageResult]) -> str:
    rows = ["| stage | result | tests | time |", "|---|---|---|---|"]
    for stage in stages:
        words = f"{STAGE_MARK.get(stage.status, '')} {markdown(stage.status.replace('_', ' '))}"
        if stage.reason:
            words += f": {markdown(stage.reason, 200)}"
        rows.append(f"| {markdown(stage.name)} | {words} | {counts(stage.cases.all())} | {seconds(stage.seconds)} |")
    return "\n".join(rows)


def progress(run: TestRun) -> list[tuple[str, str]]:
    """The stages of a run that has no results yet, each waiting, running, or what the harness said of it."""
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


def failures(stages: Iterable[StageResult]) -> list[str]:
    """The failing tests, each folded with its last lines."""
    bad = [case for stage in stages for case in stage.cases.all() if case.status in ("failed", "errored")]
    parts = []
    for case in bad[:FAILURES]:
        title = code(f"{case.file}::{case.name}" if case.file else case.name, 150)
        output = code_block(tail(case.output or case.message))
        parts.append(f"<details><summary>❌ {title}</summary>\n\n{output}\n\n</details>")
    if len(bad) > FAILURES:
        parts.append(f"… and {len(bad) - FAILURES} more on the page.")
    return parts


def findings(run: TestRun) -> list[str]:
    """What else the results say: level, where it was upgraded from, tests not run, settings that wait, a picture."""
    details = run.details
    if not details:
        return []
    parts = [line for line in (level(details), versions(details)) if line]
    parts += warnings(details.get("loosened", []))
    if leaks := details.get("secret_leaks"):
        names = ", ".join(code(name, 150) for name in leaks[:MOST_NAMES]) + (" and more" if len(leaks) > MOST_NAMES else "")
        parts.append(f"⚠️ A secret of this run was printed, and is blackened, in {names}.")
    parts += extra_tests(details.get("extras", {}))
    parts += closes(run)
    picture = run.artefacts.filter(kind=Artefact.Kind.PICTURE).defer("data").first()
    if picture and not run.repository.private:  # the forge's readers could not load a private one
        parts.append(f"<details><summary>The app</summary>\n\n![The app]({web_address(picture.url)})\n\n</details>")
    return parts


def level(details: Mapping[str, Any]) -> str:
    """The level, and what ended the climb."""
    found = details.get("level") or {}
    if not found.get("rungs"):
        return ""
    text = f"Level **{int(found['value'])}** of 5"
    stop = next((rung for rung in found["rungs"] if rung["status"] == "stopped"), None)
    if stop:
        text += f"; {markdown(stop['name'])} ended the climb" + (f": {markdown(stop['reason'], 200)}" if stop["reason"] else "")
    return text if text.endswith((".", "…")) else f"{text}."


def versions(details: Mapping[str, Any]) -> str:
    if not details.get("upgraded_from"):
        return ""
    new = markdown(details.get("version") or "the commit", 150)
    return f"Deployed as {markdown(details['upgraded_from'], 150)}, then upgraded to {new}."


def extra_tests(extras: Mapping[str, Any]) -> list[str]:
    """How many extra tests were not run, and which of them this change asks for."""
    count = extras.get("not_run", 0)
    if not count:
        return []
    text = f"{count} extra {'test was' if count == 1 else 'tests were'} not run."
    suggested = extras.get("suggested", [])
    if suggested:
        names = "\n".join(f"- {code(test['file'] + '::' + test['name'], 150)}" for test in suggested[:MOST_NAMES])
        more = f"\n- … and {len(suggested) - MOST_NAMES} more" if len(suggested) > MOST_NAMES else ""
        text += f" This change touches what these cover:\n\n{names}{more}\n\n"
    return [f"{text.rstrip(' ')} Run them with: `{chatops.OPTIONS['--extra-tests'].form}`".replace("\n\n Run", "\n\nRun")]


def closes(run: TestRun) -> list[str]:
    """The entries of the deferred registry that this change would close."""
    if run.pull_request is None:
        return []
    tests = [ExtraTest.model_validate(test) for test in run.details.get("extras", {}).get("tests", [])]
    slugs = deferred.would_close(run.repository.full_name, tests, run.details.get("changed", []))
    if not slugs:
        return []
    names = ", ".join(f"**{markdown(slug, 150)}**" for slug in slugs[:MOST_NAMES])
    return [f"This ports the deferred test {names}; its entry can be closed once it is merged."]


def footer(run: TestRun) -> str:
    who = f"Asked for by {markdown(run.requested_by, 100)}." if run.requested_by else ""
    if run.active:
        return f"[Follow it live]({run.url}). {who} Stop it: `{chatops.VERBS['cancel'].form}`".replace("  ", " ")
    took = f" It took {seconds(run.seconds)}." if run.seconds else ""
    return f"[Log and details]({run.url}).{took} {who} Run it again: `{chatops.VERBS['retry'].form}`".replace("  ", " ")


# --- pieces


def tail(text: str) -> str:
    lines = [shorten(line, 300) for line in text.rstrip().splitlines()]
    return "\n".join(lines[-TAIL_LINES:])


def _commit(sha: str) -> str:
    return f"`{commit(sha)[:10]}`" if commit(sha) else "an unknown commit"


def _named(wanted: str) -> str:
    """What a person gave for a commit's id."""
    return f"`{wanted}`" if commit(wanted) else code(wanted, 64)


def _changes(pull_url: str, sha: str) -> str:
    """A link to what a commit changes, where the forge gave an address that can be one."""
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
    rows = [f"| `{entry.form}` | {entry.text} |" for entry in chatops.table()]
    return "\n".join(["You can write, at the start of a line:", "", "| | |", "|---|---|", *rows])


def reply_problem(problem: chatops.Problem) -> str:
    # What stands between backticks is code, our own word or a stranger's.
    words = [code(part, 100) if place % 2 else _spaced(part) for place, part in enumerate(problem.text.split("`"))]
    nearest = problem.nearest if _ours(problem.nearest) else chatops.RUN.form
    return f"{''.join(words)} Nearest valid form:\n\n```\n{nearest}\n```\n\nAll forms: `{chatops.VERBS['help'].form}`"


def _ours(line: str) -> bool:
    """Whether a line is one that we suggest, and not one that somebody wrote."""
    _, named, stages = line.partition("!testme --stages ")
    return line in {entry.form for entry in chatops.table()} or bool(named and set(stages.split(",")) <= set(STAGES))


def _spaced(part: str) -> str:
    """A part of a sentence, with the spaces at its ends."""
    before, after = part[:1].isspace(), part[1:][-1:].isspace()
    return f"{' ' * before}{markdown(part) if part.strip() else ''}{' ' * after}"


def reply_edited() -> str:
    return (
        "Your comment was edited before I first saw it, so I do not know who wrote what. "
        "Please write the command in a new comment."
    )


def reply_outsider(repository: str) -> str:
    return (
        f"Thank you. Runs for {markdown(repository)} can be asked for by its owner, members of its organisation and "
        "collaborators; one of them may write the command here."
    )


def reply_unseen(repository: str) -> str:
    """For somebody who may be a member, where the forge does not let cc-ci see whether they are."""
    return (
        f"Thank you. cc-ci cannot see here who may ask for runs of {markdown(repository)}, so it does not know whether you may, "
        "and nothing was started. Please tell whoever looks after cc-ci: `cc-ci doctor` says which right its token lacks. Until "
        "that is mended, the repository's owner, or somebody on its allow-list, may write the command here."
    )


def reply_needs_sha(sha: str, pull_url: str) -> str:
    """The exact line to write, and where to look at what it would run."""
    return (
        "This code may come from somebody who is not a maintainer, and the forge does not tell that it stayed the same "
        f"after your comment. Please look at {_changes(pull_url, sha)}, and if they are fine, write:\n\n{_run_of(sha)}"
    )


def reply_unknown_sha(wanted: str, head: str) -> str:
    return f"{_named(wanted)} is no commit of this pull request. The newest is:\n\n{_run_of(head)}"


def reply_ambiguous_sha(wanted: str, head: str) -> str:
    return f"{_named(wanted)} does not name one commit; please write more digits:\n\n{_run_of(head)}"


def reply_approve_named(sha: str, pull_url: str) -> str:
    return (
        "An approval names the whole commit, so that it is for the code that you looked at. "
        f"Please look at {_changes(pull_url, sha)}, and if they are fine, write:\n\n{_approve(sha)}"
    )


def reply_approve_other(wanted: str, waiting: str, pull_url: str) -> str:
    return f"The run that waits is not of {_named(wanted)}. {reply_approve_named(waiting, pull_url)}"


def reply_closed() -> str:
    return "This pull request is closed; I test open ones only."


def reply_nothing(verb: str) -> str:
    words = {
        "cancel": "There is no run to cancel.",
        "retry": "There is no run to repeat yet.",
        "status": "There is no run yet.",
        "approve": "There is no run that waits for approval.",
    }
    return f"{words[verb]} Ask for one with:\n\n```\n{chatops.RUN.form}\n```"


def reply_status(run: TestRun, ahead: int) -> str:
    state = State(run.state)
    text = f"{MARK[state]} The newest run, of {_commit(run.sha)}, {HEADLINE[state]}."
    if state == State.QUEUED and ahead:
        text += f" {ahead} ahead of it."
    return f"{text} [Details]({run.url})"
