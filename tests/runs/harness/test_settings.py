"""cc-ci.toml: what is read, what is answered with the nearest valid key, and what waits for its merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.harness.settings import App, RecipeSettings, SettingsError, effective, parse, table

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
    assert parse(None) == RecipeSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[app]\npth = '/x'", "there is no setting app.pth; did you mean app.path?"),
        ("need = ['oidc']", "there is no setting need; did you mean needs?"),
        ("[stages]\nupgrad = 'x'", "there is no setting stages.upgrad; did you mean stages.upgrade?"),
        ("[app]\nzzz = 1", "there is no setting app.zzz (known: path, status)"),
        ("needs = ['ldap']", "needs.0: Input should be 'oidc'"),
        ("[app]\npath = 'health'", "app.path: must begin with a slash"),
        ("[app]\nstatus = [20]", "app.status: must be HTTP status codes"),
        ("[env]\nDOMAIN = 'x'", "env: 'DOMAIN' cannot be set here"),
        ("[stages]\nbackup = ' '", "stages: backup needs a reason"),
        ("[limits]\nrun_seconds = 0", "limits.run_seconds"),
        ("app = ", "cannot be read: Invalid value (at"),
        ("x = " + "[" * 3000, "cannot be read"),
        ("#" * 70_000, "is bigger than 64 kB"),
        ("\xff".encode("latin-1").decode("latin-1"), "cannot be read"),
    ],
)
def test_a_wrong_file_says_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse(text.encode())
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("base", "own", "waits"),
    [
        ("", "[app]\nstatus = [200]", ""),  # stricter than the default
        ("", "[app]\npath = '/x'\nstatus = [200]", ""),
        ("", "[app]\npath = '/x'", "app.path"),
        ("", "[app]\nstatus = [200, 404]", "app.status"),
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
    except SettingsError:
        pass


def test_the_docs_hold_the_table_and_an_example_that_is_read() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "write-tests.md").read_text()
    assert table() in docs
    example = docs.partition("## Settings: cc-ci.toml")[2].partition("```toml\n")[2].partition("```")[0]
    assert parse(example.encode()).env.values == {"SIGNUPS": "closed"}
