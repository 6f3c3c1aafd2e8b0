"""The README's metadata: what is read of it, and what a run shows."""

from __future__ import annotations

from typing import Any

import pytest

from runs.harness.protocol import CaseResult, StageResult, Verdict
from runs.harness.readme import claims, values

STAGES = ("install", "upgrade", "backup", "restore", "custom")


def shown(
    changes: dict[str, dict[str, Any]] | None = None,
    verdict: Verdict = Verdict.PASSED,
    health: bool | None = True,
    connected: bool = False,
    **claimed: str,
) -> dict[str, tuple[str, bool]]:
    """Of a run in which everything passed, but for the changes: what it shows, and whether the README agrees."""
    fields: dict[str, dict[str, Any]] = {name: {"status": "passed"} for name in STAGES} | (changes or {})
    stages = {name: StageResult.model_validate({"name": name, **given}) for name, given in fields.items() if given}
    return {
        claim.name: (claim.shown, claim.agrees) for claim in claims(claimed, stages, verdict, health=health, connected=connected)
    }


def test_the_values_between_the_marks() -> None:
    inside = "* **Backups**: Yes\n- **SSO**: 3 (OAuth)\n* **Email**:\n"
    text = f"* **Tests**: 9\n<!-- metadata -->\n\n{inside}\n<!-- endmetadata -->\n* **Tests**: 8\n"
    assert values(text) == {"Backups": "Yes", "SSO": "3 (OAuth)"}


@pytest.mark.parametrize("text", ["", "* **Backups**: Yes", "<!-- endmetadata -->\n* **Backups**: Yes\n<!-- metadata -->"])
def test_no_values_without_marks(text: str) -> None:
    assert values(text) == {}


def test_what_a_run_that_passed_shows() -> None:
    assert shown(Backups="yes, with backupbot", Tests="2") == {
        "Healthcheck": ("Yes", False),
        "Backups": ("Yes", True),
        "Tests": ("3", False),
    }
    assert shown(connected=True, SSO="3 (OAuth)")["SSO"] == ("3", True)
    assert shown(Tests="❸💚")["Tests"] == ("3", True)
    assert shown({name: {"status": "not_applicable"} for name in ("backup", "restore")}, Backups="❌")["Backups"] == ("No", True)
    assert shown(connected=True, SSO="13")["SSO"] == ("3", False)


@pytest.mark.parametrize("value", ["yes", "Yes, daily", "**Yes**", "[yes](https://example.org/backups)", "✅ Yes", "✅"])
def test_a_value_is_its_first_word_however_it_is_written(value: str) -> None:
    assert shown(Backups=value)["Backups"] == ("Yes", True)


@pytest.mark.parametrize(
    ("upgrade", "tells"),
    [("failed", False), ("errored", False), ("not_run", False), ("not_applicable", True), ("passed", True), (None, True)],
)
def test_the_health_check_is_that_of_the_commit_not_of_the_published_version(upgrade: str | None, tells: bool) -> None:
    changes: dict[str, dict[str, Any]] = {"upgrade": {"status": upgrade} if upgrade else {}}
    assert ("Healthcheck" in shown(changes, Verdict.FAILED, health=False)) is tells


def test_a_recipe_without_health_check() -> None:
    assert shown(health=False, Healthcheck="No") | {"Backups": ("Yes", False)} == {
        "Healthcheck": ("No", True),
        "Backups": ("Yes", False),
        "Tests": ("2", False),
    }


def test_plain_processes_say_nothing_of_health_checks() -> None:
    assert shown(health=None).keys() == {"Backups"}


@pytest.mark.parametrize(
    ("changes", "backups"),
    [
        ({"restore": {"status": "failed"}}, None),
        ({"restore": {"status": "passed", "proven": False}}, None),
        ({"backup": {"status": "not_applicable"}, "restore": {"status": "not_applicable"}}, "No"),
        ({"backup": {"status": "not_applicable", "proven": False}, "restore": {"status": "not_applicable"}}, None),
        ({"backup": {}}, None),
    ],
)
def test_backups_are_claimed_only_where_they_were_seen(changes: dict[str, dict[str, Any]], backups: str | None) -> None:
    assert shown(changes).get("Backups", (None,))[0] == backups


def test_a_run_that_did_not_pass_or_was_not_whole_shows_less() -> None:
    assert shown({"custom": {"status": "failed"}}, Verdict.FAILED, connected=True).keys() == {"Healthcheck", "Backups"}
    assert shown({"install": {"status": "failed"}}, Verdict.FAILED).keys() == {"Backups"}
    assert "Tests" not in shown({"custom": {}}, connected=True)
    skipped = CaseResult(name="test_sign_in", status="skipped").model_dump()
    assert "SSO" not in shown({"custom": {"status": "passed", "cases": [skipped]}}, connected=True)
