"""The status of each app, for the command, the page and JSON output."""

from __future__ import annotations

from typing import Any

from infra.models import InfraApp
from infra.releases.evaluate import by_hand, plan_of
from infra.releases.gate import Blocker, Plan, Verdict
from infra.runtime.drift import drift_message


def describe(app: InfraApp, plan: Plan | None = None) -> dict[str, Any]:
    """One app in plain values. `held`: versions that are held back, newest first, each with its blockers and remedies."""
    plan = plan or plan_of(app)
    wanted = plan.target or plan.newest
    latest = app.upgrades.first()
    return {
        "name": app.name,
        "recipe": app.recipe,
        "domain": app.domain,
        "server": app.server,
        "stack": app.stack,
        "deployer": app.deployer,
        "owner": app.owner,
        "state": app.state,
        "declared": app.declared,
        "pinned": app.pinned_version,
        "running": app.running_version,
        "newest": str(plan.newest or app.running_version),
        "target": str(plan.target or ""),
        "takes": str(plan.takes or ""),
        "blockers": [blocker.as_dict() for blocker in plan.blockers],
        "held": [_verdict(verdict) for verdict in reversed(plan.verdicts) if verdict.blockers],
        "by_hand": f"{by_hand(app)} {wanted}" if app.owner == InfraApp.Owner.MAINTAINERS and wanted else "",
        "contested": drift_message(app) if app.state == InfraApp.State.DRIFTED else "",
        "window": app.window,
        "discovered_at": app.discovered_at.isoformat() if app.discovered_at else None,
        "discovery_error": app.discovery_error,
        "unreadable": app.unreadable,
        "upgrade": {"id": latest.pk, "to": latest.to_version, "state": latest.state, "reason": latest.reason} if latest else None,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"version": str(verdict.version), "held": verdict.held, "blockers": [_shown(blocker) for blocker in verdict.blockers]}


def _shown(blocker: Blocker) -> dict[str, Any]:
    """A blocker's values, its passages split around the matching word, so that a page can highlight it."""
    value = blocker.as_dict()
    for passage in value["passages"]:
        text, start, end = passage["text"], passage["start"], passage["end"]
        passage |= {"before": text[:start], "word": text[start:end], "after": text[end:]}
    return value


def marked_notes(notes: str | None, plan: Plan, version: str) -> list[tuple[str, str, str]]:
    """The lines of a version's notes, each split around the word that holds the version."""
    verdict = next((one for one in plan.verdicts if str(one.version) == version), None)
    blockers = (*verdict.blockers, *verdict.waived) if verdict else ()
    passages = {p.line: p for blocker in blockers if blocker.version == version for p in blocker.passages}
    found = []
    for number, line in enumerate((notes or "").splitlines(), 1):
        passage = passages.get(number)
        place = line.find(passage.text) if passage else -1
        if passage is None or place < 0:
            found.append((line, "", ""))
        else:
            start, end = place + passage.start, place + passage.end
            found.append((line[:start], line[start:end], line[end:]))
    return found


def in_words(status: dict[str, Any]) -> list[str]:
    """The same as lines of text."""
    owner = "reconciled by cc-ci" if status["owner"] == "reconciled" else "managed by its maintainers"
    head = f"{status['name']}: {status['running'] or 'not running, as far as cc-ci knows'}"
    if status["newest"] and status["newest"] != status["running"]:
        head += f", newest {status['newest']}"
    lines = [f"{head} ({owner}, {InfraApp.State(status['state']).label}{'' if status['declared'] else ', no longer declared'})"]
    if status["takes"]:
        lines.append(f"  next: {status['takes']}")
    elif status["target"] and status["owner"] == "reconciled":
        lines.append(f"  {status['target']} is available, but:")
    if status["contested"]:
        lines.append(f"  {status['contested']}")
    lines += [f"  {blocker['text']} {blocker['lift']}" for blocker in status["blockers"] if blocker["kind"] != "maintainers"]
    for verdict in status["held"]:
        lines.append(f"  {verdict['version']} {'is held' if verdict['held'] else 'is blocked for now'}:")
        for blocker in verdict["blockers"]:
            lines.append(f"    {blocker['text']} {blocker['lift']}")
            lines += [f"      {p['line']}: {p['before']}[{p['word']}]{p['after']}" for p in blocker["passages"]]
    if status["by_hand"]:
        lines.append(f"  manually: {status['by_hand']}")
    if status["discovery_error"]:
        lines.append(f"  {status['discovery_error']}")
    if status["unreadable"]:
        tags = ", ".join(item["tag"] for item in status["unreadable"])
        lines.append(f"  unusable tags: {tags}. Why: cc-ci infra releases {status['name']}")
    return lines
