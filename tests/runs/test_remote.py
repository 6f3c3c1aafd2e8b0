"""The commands that ask a server need no database, and tell what is missing. (Tests without `django_db` may not use one.)"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.cli import MISUSE, NO, OURS, commands, execute
from enrollment.forges import http
from enrollment.forges.base import Ask, Garbage
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
        ("http://[::1", TOKEN, "Name the server"),
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


def test_a_token_file_that_others_can_read_is_reported_and_an_endless_one_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    for mode, warned in ((0o644, True), (0o640, False), (0o600, False)):
        file.chmod(mode)
        assert execute(["cc-ci", "runs", "--token-file", str(file)]) == OURS
        assert ("chmod 600" in capsys.readouterr().err) == warned
    assert execute(["cc-ci", "runs", "--token-file", "/dev/zero"]) == MISUSE


# --- a server that is hostile, or none of ours


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that answers everything with `status`, `headers` and `body`, and notes the paths asked for in `seen`."""
    plan = SimpleNamespace(status=200, headers={}, body=b"{}", seen=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plan.seen.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(plan.status)
            for name, value in {**plan.headers, "Content-Length": str(len(plan.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(plan.body)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    plan.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("CC_CI_SERVER", plan.url)
    yield plan
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "code"), [(400, MISUSE), (401, MISUSE), (403, NO), (409, NO), (429, OURS), (503, OURS)])
def test_no_error_of_a_server_reaches_the_terminal_unfiltered(
    hostile: Any, status: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.status, hostile.body = status, json.dumps({"message": "no\x1b]0;evil\x07\u202e\nPassed"}).encode()
    assert execute(["cc-ci", "show", ID]) == code
    said = capsys.readouterr().err
    assert "no ]0;evil" in said and said.count("\n") == 1 and said.strip().isprintable()


def test_a_listing_without_end_ends(hostile: Any) -> None:
    hostile.body = b'{"items": [], "next": "x"}'
    assert execute(["cc-ci", "runs"]) == 0
    assert len(hostile.seen) == 1


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"null", b'{"items": 1, "next": 2}', b'{"items": [1]}', b'{"state": [], "id": 1}']
)
def test_answers_of_another_service_are_told_as_such(hostile: Any, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.body = body
    for words in LINES:
        assert execute(["cc-ci", *words]) == OURS
        said = capsys.readouterr().err
        assert "not the answers of a cc-ci server" in said and "Traceback" not in said


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[0])
def test_no_redirect_is_followed(hostile: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hostile.status, hostile.headers = 302, {"Location": f"{hostile.url}/api/elsewhere"}
    assert execute(["cc-ci", *words]) == MISUSE
    assert len(hostile.seen) == 1 and "name the server by its own address" in capsys.readouterr().err


def test_the_body_of_a_redirect_is_limited_as_others_are(hostile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 1000)
    hostile.status, hostile.body = 302, gzip.compress(bytes(2000))
    hostile.headers = {"Location": f"{hostile.url}/api/elsewhere", "Content-Encoding": "gzip"}
    client = http.Http(hostile.url, "/api", {}, 60, None, lambda method, path: Ask(method))
    for method in ("GET", "POST"):
        with pytest.raises(Garbage):
            client.once(method, "/runs")
    assert len(hostile.seen) == 2
