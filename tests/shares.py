"""How much of the tests' time each part of cc-ci takes: each has a share of `make test` that it keeps to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Beginnings of paths below tests/; the longest that fits counts, and what none fits is the main job's.
PARTS: dict[str, tuple[str, ...]] = {
    "recipe harness": (
        "browser/test_deferred_page",
        "e2e/test_killed_runs",
        "e2e/test_proxied_runs",
        "e2e/test_swarm_runs",
        "e2e/test_synapse",
        "e2e/test_whole_runs",
        "infra/deployers",
        "infra/test_versions",
        "runs/harness",
        "runs/test_deferred",
        "runs/test_evidence",
        "runs/test_test_command",
    ),
    "forges at scale": (
        "chaos/test_storm",
        "enrollment/fakeforge/test_deliveries",
        "enrollment/fakeforge/test_faults",
        "enrollment/test_abilities",
        "enrollment/test_another_kind",
        "enrollment/test_budget",
        "enrollment/test_clocks",
        "enrollment/test_hooks_by_hand",
        "enrollment/test_mutated_answers",
        "enrollment/test_policies",
        "enrollment/test_receiver",
        "enrollment/test_rights",
        "enrollment/test_trust_worst_moment",
        "enrollment/test_webhook",
        "runs/test_approval",
        "runs/test_starting",
    ),
    "executors and control": (
        "controlplane/test_api",
        "e2e/test_quick_runs",
        "enrollment/fakeforge/test_captured",
        "enrollment/test_real_deliveries",
        "runs/executors",
        "runs/test_api",
        "runs/test_case_history",
        "runs/test_nights",
        "runs/test_older_commits",
        "runs/test_quick",
        "runs/test_remote",
        "runs/test_retry",
        "runs/test_schedul",
    ),
    "what people see": (
        "browser/test_journeys",
        "browser/test_pages",
        "controlplane/test_docs_pages",
        "controlplane/test_pages",
        "e2e/test_demo",
        "enrollment/test_forge_login",
        "runs/test_admin",
        "runs/test_deployments",
        "runs/test_recipe_pages",
        "runs/test_shared_pages",
        "runs/test_views",
        "runs/test_visitors",
        "test_doc_commands",
    ),
    "own apps": ("browser/test_own_apps", "e2e/test_infra", "e2e/test_rebuild", "infra"),
}
MAIN = "main job"


def part_of(path: str) -> str:
    """The part that a test file belongs to; `path` is relative to tests/."""
    fitting = [(len(start), part) for part, starts in PARTS.items() for start in starts if path.startswith(start)]
    return max(fitting)[1] if fitting else MAIN


def seconds(reports: Iterable[Any]) -> Counter[str]:
    """Seconds of work in each part, set-up and teardown included."""
    found: Counter[str] = Counter()
    for report in reports:
        if hasattr(report, "duration"):
            path = str(report.nodeid).partition("::")[0].removeprefix("tests/")
            found[part_of(path)] += report.duration
    return found


def lines(reports: Iterable[Any], workers: int) -> list[str]:
    """For people: the work of each part, and about how long it keeps all workers together busy."""
    found = seconds(reports)
    return [
        f"{work:7.0f} s of work, {work / workers:4.0f} s with {workers} workers: {part}" for part, work in found.most_common()
    ]
