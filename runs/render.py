"""A run as Markdown for the forge. Pure: a run with its rows in, text out.

Text from outside (logs, test names, messages) is data: it stands in fences that it cannot close, or with everything that
means something to Markdown, and every `@` that would ping a person, made harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runs import chatops, deferred
from runs.harness.protocol import ExtraTest
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
ZERO_WIDTH = "\u200b"


def report(run: TestRun, *, ahead: int = 0, marker: str = "") -> str:
    """The comment about a run. `ahead`: how many runs are before it. `marker`: the hidden id, put first."""
    state = State(run.state)
    parts = [f"<!-- {marker} -->"] if marker else []
    parts.append(f"### {MARK[state]} The test of {plain(run.repository.name)} at `{run.short_sha}` {HEADLINE[state]}")
    if state == State.QUEUED and ahead:
        parts.append(f"{ahead} {'run is' if ahead == 1 else 'runs are'} ahead of it.")
    if state == State.AWAITING_APPROVAL:
        parts.append(approval(run))
    stages = list(run.stage_results.all())
    # The table gives the reason of a stage that failed; twice would be noise.
    if run.reason and state != State.PASSED and not any(stage.reason and stage.reason in run.reason for stage in stages):
        parts.append(plain(run.reason))
    if stages:
        parts.append(stage_table(stages))
    elif running := running_stages(run):
        parts.append(running)
    parts += failures(stages)
    parts += [f"⚠️ {plain(text)}" for text in run.warnings]
    parts += findings(run)
    parts.append(footer(run))
    return "\n\n".join(parts) + "\n"


def approval(run: TestRun) -> str:
    """What a maintainer has to do about a run that waits. The line names the commit: it counts for that one alone."""
    pull_url = run.pull_request.html_url if run.pull_request else ""
    return (
        f"{plain(run.requested_by)} is not a maintainer, so somebody who is has to look first. Please read "
        f"[that commit's changes]({pull_url}/commits/{run.sha}), and if they are fine, write:"
        f"\n\n```\n!testme approve {run.short_sha}\n```\n\n"
        "It counts for this commit only; what is pushed later needs an approval of its own."
    )


def stage_table(stages: Sequence[StageResult]) -> str:
    rows = ["| stage | result | tests | time |", "|---|---|---|---|"]
    for stage in stages:
        words = f"{STAGE_MARK.get(stage.status, '')} {stage.status.replace('_', ' ')}"
        if stage.reason:
            words += f": {plain(shorten(stage.reason, 200))}"
        rows.append(f"| {plain(stage.name)} | {words} | {counts(stage.cases.all())} | {seconds(stage.seconds)} |")
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
    rows = [f"| {name} | {STAGE_MARK.get(word, '')} {plain(word.replace('_', ' '))} |" for name, word in status]
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
        title = html(shorten(f"{case.file}::{case.name}" if case.file else case.name, 150))
        parts.append(
            f"<details><summary>❌ <code>{title}</code></summary>\n\n{fence(tail(case.output or case.message))}\n\n</details>"
        )
    if len(bad) > FAILURES:
        parts.append(f"… and {len(bad) - FAILURES} more on the page.")
    return parts


def findings(run: TestRun) -> list[str]:
    """What else the results say: level, where it was upgraded from, tests not run, settings that wait, a picture."""
    details = run.details
    if not details:
        return []
    parts = [line for line in (level(details), versions(details)) if line]
    parts += [f"⚠️ {plain(text)}" for text in details.get("loosened", [])]
    if leaks := details.get("secret_leaks"):
        names = ", ".join(f"`{name}`" for name in leaks)
        parts.append(f"⚠️ A secret of this run was printed, and is blackened, in {names}.")
    parts += extra_tests(details.get("extras", {}))
    parts += closes(run)
    picture = run.artefacts.filter(kind=Artefact.Kind.PICTURE).defer("data").first()
    if picture and not run.repository.private:  # the forge's readers could not load a private one
        parts.append(f"<details><summary>The app</summary>\n\n![The app]({picture.url})\n\n</details>")
    return parts


def level(details: Mapping[str, Any]) -> str:
    """The level, and what ended the climb."""
    found = details.get("level") or {}
    if not found.get("rungs"):
        return ""
    text = f"Level **{found['value']}** of 5"
    stop = next((rung for rung in found["rungs"] if rung["status"] == "stopped"), None)
    if stop:
        text += f"; {plain(stop['name'])} ended the climb" + (
            f": {plain(shorten(stop['reason'], 200))}" if stop["reason"] else ""
        )
    return text if text.endswith((".", "…")) else f"{text}."


def versions(details: Mapping[str, Any]) -> str:
    if not details.get("upgraded_from"):
        return ""
    return f"Deployed as {plain(details['upgraded_from'])}, then upgraded to {plain(details.get('version') or 'the commit')}."


def extra_tests(extras: Mapping[str, Any]) -> list[str]:
    """How many extra tests were not run, and which of them this change asks for."""
    count = extras.get("not_run", 0)
    if not count:
        return []
    text = f"{count} extra {'test was' if count == 1 else 'tests were'} not run."
    suggested = extras.get("suggested", [])
    if suggested:
        names = "\n".join(
            f"- <code>{plain(shorten(test['file'] + '::' + test['name'], 150))}</code>" for test in suggested[:MOST_NAMES]
        )
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
    names = ", ".join(f"**{plain(slug)}**" for slug in slugs)
    return [f"This ports the deferred test {names}; its entry can be closed once it is merged."]


def footer(run: TestRun) -> str:
    who = f"Asked for by {plain(run.requested_by)}." if run.requested_by else ""
    if run.active:
        return f"[Follow it live]({run.url}). {who} Stop it: `{chatops.VERBS['cancel'].form}`".replace("  ", " ")
    took = f" It took {seconds(run.seconds)}." if run.seconds else ""
    return f"[Log and details]({run.url}).{took} {who} Run it again: `{chatops.VERBS['retry'].form}`".replace("  ", " ")


# --- making text harmless


def plain(text: str) -> str:
    """Text from outside, on one line, with nothing that Markdown, HTML or a forge would act on."""
    text = " ".join(text.split())
    text = html(text)
    text = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)
    return defuse(text)


def html(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return defuse(text.replace("|", "&#124;").replace("`", "&#96;"))


def defuse(text: str) -> str:
    """No mention, no link to an issue, no control character."""
    text = re.sub(r"@(?=\w)", "@" + ZERO_WIDTH, text)
    text = re.sub(r"(?<![&\w])#(?=\d)", "#" + ZERO_WIDTH, text)
    return "".join(char for char in text if char in "\n\t" or (char.isprintable() or char == ZERO_WIDTH))


def fence(text: str) -> str:
    """Text in a fence longer than any in it."""
    text = defuse(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def tail(text: str) -> str:
    lines = [shorten(line, 300) for line in text.rstrip().splitlines()]
    return "\n".join(lines[-TAIL_LINES:])


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
    return f"{problem.text} Nearest valid form:\n\n```\n{problem.nearest}\n```\n\nAll forms: `{chatops.VERBS['help'].form}`"


def reply_edited() -> str:
    return (
        "Your comment was edited before I first saw it, so I do not know who wrote what. "
        "Please write the command in a new comment."
    )


def reply_outsider(repository: str) -> str:
    return (
        f"Thank you. Runs for {plain(repository)} can be asked for by its owner, members of its organisation and collaborators; "
        "one of them may write the command here."
    )


def reply_unseen(repository: str) -> str:
    """For somebody who may be a member, where the forge does not let cc-ci see whether they are."""
    return (
        f"Thank you. cc-ci cannot see here who may ask for runs of {plain(repository)}, so it does not know whether you may, and "
        "nothing was started. Please tell whoever looks after cc-ci: `cc-ci doctor` says which right its token lacks. Until "
        "that is mended, the repository's owner, or somebody on its allow-list, may write the command here."
    )


def reply_needs_sha(sha: str, pull_url: str) -> str:
    """The exact line to write, and where to look at what it would run."""
    diff = f"{pull_url}/commits/{sha}"
    return (
        "This code comes from a fork of somebody who is not a maintainer, and the forge does not tell that it stayed the same "
        f"after your comment. Please look at [that commit's changes]({diff}), and if they are fine, write:"
        f"\n\n```\n!testme {sha[:10]}\n```"
    )


def reply_unknown_sha(wanted: str, head: str) -> str:
    return f"`{wanted}` is no commit of this pull request. The newest is:\n\n```\n!testme {head[:10]}\n```"


def reply_ambiguous_sha(wanted: str, head: str) -> str:
    return f"`{wanted}` does not name one commit; please write more digits:\n\n```\n!testme {head[:16]}\n```"


def reply_approve_named(sha: str, pull_url: str) -> str:
    return (
        f"When you wrote that, the run of `{sha[:10]}` was not there yet, so I do not know which code you looked at. "
        f"Please look at [that commit's changes]({pull_url}/commits/{sha}), and if they are fine, write:"
        f"\n\n```\n!testme approve {sha[:10]}\n```"
    )


def reply_approve_other(wanted: str, waiting: str) -> str:
    return (
        f"The run that waits is not of `{wanted}`. The one that does is approved by:\n\n```\n!testme approve {waiting[:10]}\n```"
    )


def reply_approve_moved(old: str, new: str, pull_url: str) -> str:
    return (
        f"Something was pushed since the run of `{old[:10]}` was asked for, so your approval started nothing. Please look at "
        f"[the newest commit's changes]({pull_url}/commits/{new}), and if they are fine, write:"
        f"\n\n```\n!testme approve {new[:10]}\n```"
    )


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
    text = f"{MARK[state]} The newest run, of `{run.short_sha}`, {HEADLINE[state]}."
    if state == State.QUEUED and ahead:
        text += f" {ahead} ahead of it."
    return f"{text} [Details]({run.url})"
