"""The commands that ask a server need no database, and tell what is missing. (Tests without `django_db` may not use one.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli import MISUSE, OURS, commands, execute
from runs import remote

TOKEN = "ccci_000000000000_" + 43 * "A"
ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
LINES = [["runs"], ["show", ID], ["start", "a/b"], ["cancel", ID]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("CC_CI_TOKEN", TOKEN)


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[0])
def test_without_a_database_it_asks_the_server(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[0] in commands()
    assert execute(["cc-ci", *words]) == OURS
    said = capsys.readouterr().err
    assert "refused" in said and TOKEN not in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("server", "token", "word"),
    [
        ("", TOKEN, "Name the server"),
        ("ci.example.org", TOKEN, "Name the server"),
        ("file:///etc/passwd", TOKEN, "Name the server"),
        ("http://x", "", "A token is needed"),
        ("http://x", "a\nb", "A token is needed"),
        ("http://x", "é", "A token is needed"),
    ],
)
def test_what_is_missing_is_told(
    server: str, token: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC_CI_SERVER", server)
    monkeypatch.setenv("CC_CI_TOKEN", token)
    assert execute(["cc-ci", "runs"]) == MISUSE
    assert word in capsys.readouterr().err


def test_a_token_is_read_from_a_file_and_is_no_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["cc-ci", "runs", "--token-file", str(tmp_path / "none")]) == MISUSE
    assert "Cannot read the token" in capsys.readouterr().err
    assert execute(["cc-ci", "runs", "--token", TOKEN]) == MISUSE


@pytest.mark.parametrize("typed", ["", "x", "a" * 31, f"{ID}/x", "https://ci.example.org/runs/", "é" * 32])
def test_a_run_is_named_by_its_id(typed: str) -> None:
    assert execute(["cc-ci", "show", typed]) == MISUSE


def test_a_run_is_named_by_its_page() -> None:
    assert {remote.run_id(typed) for typed in (ID, f"https://ci.example.org/runs/{ID}/", f"/runs/{ID}", ID.replace("-", ""))} == {
        ID
    }
