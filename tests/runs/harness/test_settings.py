"""cc-ci.toml: what is read, what is answered with the nearest valid key, and what waits for its merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.harness.recipe_config import App, RecipeConfig, RecipeConfigError, effective, new_values, parse, table, touches_older

WHOLE = b"""
needs = ["oidc"]
[app]
path = "/health"
status = [200]
[limits]
settle_seconds = 120
[env]
GREETING = "hello"
[backup]
means = "dump"
[stages]
upgrade = "data cannot be carried over yet"
[ports]
exclusive = [25]
[picture]
path = "/login"
[lint]
C003 = "on purpose"
"""


def test_the_whole_file() -> None:
    settings = parse(WHOLE)
    assert settings.needs == ("oidc",)
    assert settings.app == App(path="/health", status=(200,))
    assert settings.limits.settle_seconds == 120
    assert settings.env.values == {"GREETING": "hello"}
    assert settings.stages == {"upgrade": "data cannot be carried over yet"}
    assert settings.ports.exclusive == (25,)
    assert settings.lint == {"C003": "on purpose"}


def test_a_recipe_without_it_has_the_defaults() -> None:
    assert parse(None) == RecipeConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[app]\npth = '/x'", "unknown setting app.pth; did you mean app.path?"),
        ("need = ['oidc']", "unknown setting need; did you mean needs?"),
        ("[stages]\nupgrad = 'x'", "unknown setting stages.upgrad; did you mean stages.upgrade?"),
        ("[app]\nzzz = 1", "unknown setting app.zzz (known: path, status, no_web)"),
        ("needs = ['ldap']", "needs.0: Input should be 'oidc'"),
        ("[app]\npath = 'health'", "app.path: must begin with a slash"),
        ("[app]\nstatus = [20]", "app.status: must be HTTP status codes"),
        ("[env]\nDOMAIN = 'x'", "env: 'DOMAIN' cannot be set here"),
        ("[stages]\nbackup = ' '", "stages: backup needs a reason"),
        ("[limits]\nrun_seconds = 0", "limits.run_seconds"),
        ("app = ", "Cannot read cc-ci.toml: Invalid value (at"),
        ("x = " + "[" * 3000, "Cannot read cc-ci.toml"),
        ("#" * 70_000, "is larger than 64 kB"),
        ("\xff".encode("latin-1").decode("latin-1"), "Cannot read cc-ci.toml"),
    ],
)
def test_a_wrong_file_says_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(RecipeConfigError) as error:
        parse(text.encode())
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("base", "own", "waits"),
    [
        ("", "[app]\nstatus = [200]", ""),  # stricter than the default
        ("", "[app]\npath = '/x'\nstatus = [200]", ""),
        ("", "[app]\npath = '/x'", "app.path"),
        ("", "[app]\nstatus = [200, 404]", "app.status"),
        ("", "[app]\nno_web = 'speaks SMTP'", "app.no_web"),
        ("[app]\nno_web = 'speaks SMTP'", "[app]\nno_web = 'speaks IMAP'", ""),
        ("[app]\nno_web = 'speaks SMTP'", "", ""),
        ("[app]\nstatus = [200, 302]", "[app]\nstatus = [200]", ""),
        ("[app]\nstatus = [200]", "[app]\nstatus = [200, 302]", "app.status"),
        ("[app]\nstatus = [200]", "", "app.status"),
        ("[app]\npath = '/health'\nstatus = [200]", "[app]\npath = '/'\nstatus = [200]", "app.path"),
        ("", "[stages]\nupgrade = 'too hard'", "stages.upgrade"),
        ("[stages]\nupgrade = 'too hard'", "", ""),
        ("[stages]\nupgrade = 'too hard'", "[stages]\nupgrade = 'too hard'\nbackup = 'also'", "stages.backup"),
        ("", "[limits]\nsettle_seconds = 900", "limits.settle_seconds"),
        ("", "[limits]\nsettle_seconds = 60", ""),
        ("", "[limits]\nrun_seconds = 60", ""),
        ("[limits]\nrun_seconds = 60", "", "limits.run_seconds"),
        ("", "[backup]\nmeans = 'dump'", "backup.means"),
        ("", "[lint]\nC003 = 'no'", "lint.C003"),
        ("", "[ports]\nexclusive = [443]", "ports.exclusive"),
        ("[ports]\nexclusive = [25, 143]", "[ports]\nexclusive = [25]", ""),
        ("", "[env]\nA = 'b'", ""),
        ("", "needs = ['oidc']", ""),
    ],
)
def test_loosening_waits_for_its_merge_and_is_named(base: str, own: str, waits: str) -> None:
    before, after = parse(base.encode()), parse(own.encode())
    counts, told = effective(before, after)
    if not waits:
        assert (counts, told) == (after, [])
    else:
        assert [waits in line and "counts once it is merged" in line for line in told] == [True]
        section = waits.partition(".")[0]
        assert getattr(counts, section) == getattr(before, section)


def test_what_is_merged_counts() -> None:
    settings = parse(WHOLE)
    assert effective(settings, settings) == (settings, [])


@given(st.binary(max_size=300))
def test_no_file_makes_it_fall_over(data: bytes) -> None:
    try:
        parse(data)
    except RecipeConfigError:
        pass


def test_the_docs_hold_the_table_and_an_example_that_is_read() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "write-tests.md").read_text()
    assert table() in docs
    example = docs.partition("## Settings: cc-ci.toml")[2].partition("```toml\n")[2].partition("```")[0]
    assert parse(example.encode()).env.values == {"SIGNUPS": "closed"}


def test_what_a_trusted_person_says_with_a_reason_counts_at_once() -> None:
    own = parse(b"[stages]\nbackup = 'it keeps nothing'\n[lint]\nC011 = 'no shell'\n[app]\nstatus = [404]")
    counts, told = effective(RecipeConfig(), own, trusted=True)
    assert (counts.stages, counts.lint) == (own.stages, own.lint)
    assert counts.app == RecipeConfig().app and len(told) == 1  # that has no reason
    assert effective(RecipeConfig(), own)[0].stages == {}


@pytest.mark.parametrize(
    ("own", "touched"),
    [
        ("", []),
        ("[env.upgrade]\nA = 'b'", []),
        ("[stages]\nbackup = 'x'", []),
        ("[env]\nA = 'b'", ["env"]),
        ("[app]\nstatus = [200]\n[limits]\nsettle_seconds = 1", ["app", "limits"]),
        ("needs = ['oidc']\n[secrets]\na = 'b'\n[ports]\nexclusive = [25]", ["needs", "secrets", "ports"]),
    ],
)
def test_by_which_settings_a_commit_can_break_older_versions(own: str, touched: list[str]) -> None:
    assert touches_older(RecipeConfig(), parse(own.encode())) == touched


def test_the_compose_files_of_a_strangers_tests_are_the_base_branchs() -> None:
    base = parse(b"[env]\nCOMPOSE_FILE = 'compose.yml:compose.smtp.yml'\nA = '1'")
    own = parse(b"[env]\nCOMPOSE_FILE = 'good.yml'\nA = '2'\n[env.upgrade]\nCOMPOSE_FILE = 'better.yml'\nB = '3'")
    counts, told = effective(base, own)
    assert counts.env.values == {"COMPOSE_FILE": "compose.yml:compose.smtp.yml", "A": "2"}
    assert counts.env.upgrade == {"B": "3"}
    assert ["COMPOSE_FILE" in line for line in told] == [True]
    assert effective(base, own, trusted=True) == (own, [])
    assert new_values(base, counts) == ["A", "B"]
