"""State that survives a restart, many writers at once, and the command that serves the demo."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from enrollment.fakeforge import Forge, Server, serve
from tests.enrollment.fakeforge.conftest import Client, Clock, fill

pytestmark = pytest.mark.slow(0.5)


def test_everything_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = Forge(tmp_path, clock=clock, persist=True)
    fill(first)
    first.open_issue("recipes/web", "alice", "A question")
    comment = first.comment("recipes/web", 1, "alice", "äöü\r\n", visible_after=60)
    first.react(first.issue("recipes/web", 1), comment, "alice", "eyes")
    first.set_status("recipes/web", first.pull("recipes/web", 1).head_sha, "success", "ci")
    first.rename_repo("recipes/web", "site")
    gone = first.comment("recipes/site", 1, "alice", "gone")
    first.delete_comment(gone)
    token = first.add_token("alice", "read:issue")

    second = Forge(tmp_path, clock=clock, persist=True)
    assert second.tables == first.tables
    assert second.token(token) is not None and token not in (tmp_path / "state.json").read_text()
    assert second.pull("recipes/site", 1).head_sha == first.pull("recipes/site", 1).head_sha
    # Ids are not used again, not even of what was deleted last.
    assert second.comment("recipes/site", 1, "alice", "x").id == gone.id + 1


def test_nothing_is_kept_unless_asked(tmp_path: Path, clock: Clock) -> None:
    fill(Forge(tmp_path, clock=clock))
    assert not (tmp_path / "state.json").exists()


def test_eight_writers_at_once(tmp_path: Path) -> None:
    forge = Forge(tmp_path, persist=True)
    fill(forge)
    with serve(forge) as server, ThreadPoolExecutor(8) as pool:
        client = Client(server)

        def write(number: int) -> int:
            answer = requests.post(
                server.url + "/api/v1/repos/recipes/web/issues/1/comments",
                json={"body": str(number)},
                headers={"Authorization": f"token {client.tokens['alice']}"},
                timeout=60,
            )
            return int(answer.json()["id"])

        ids = list(pool.map(write, range(80)))
        assert len(set(ids)) == 80
        listed = client.get("/repos/recipes/web/issues/1/comments").json()
    assert sorted(ids) == [row["id"] for row in listed]
    assert {row["body"] for row in listed} == {str(number) for number in range(80)}
    kept = Forge(tmp_path, persist=True)
    assert kept.issue("recipes/web", 1).comments == len(kept.comments_of()) == 80


@contextmanager
def running(root: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command as a process, once it listens, with what it wrote for the demo."""
    command = [sys.executable, "-m", "enrollment.fakeforge", "--root", str(root), "--port", "0", "--demo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("listening on http://127.0.0.1:") for line in lines)
        yield process, json.loads((root / "demo.json").read_text())
    finally:
        process.kill()
        process.communicate()


def test_the_demo_and_its_restart_after_a_crash(tmp_path: Path) -> None:
    with running(tmp_path) as (process, demo):
        bot = {"Authorization": f"token {demo['bot_token']}"}
        api = demo["url"] + "/api/v1"
        found = requests.get(f"{api}/repos/search?q=cc-ci&topic=true", headers=bot, timeout=60).json()["data"]
        assert [repo["full_name"] for repo in found] == ["recipes/broken-web", "recipes/forgetful-web", "recipes/hello-web"]
        pulls = requests.get(f"{api}/repos/issues/search?type=pulls", headers=bot, timeout=60).json()
        assert sorted((pull["repository"]["name"], pull["user"]["login"]) for pull in pulls) == [
            ("broken-web", "alice"), ("forgetful-web", "alice"), ("hello-web", "alice"), ("hello-web", "mallory"),
        ]  # fmt: skip
        comments = f"{api}/repos/recipes/hello-web/issues/1/comments"
        assert requests.post(comments, json={"body": "kept"}, headers=bot, timeout=60).status_code == 201
        assert oct((tmp_path / "demo.json").stat().st_mode)[-3:] == "600"
        process.kill()
    with running(tmp_path) as (process, again):
        assert (again["bot_token"], again["alice_token"]) == (demo["bot_token"], demo["alice_token"])
        comments = f"{again['url']}/api/v1/repos/recipes/hello-web/issues/1/comments"
        assert [row["body"] for row in requests.get(comments, timeout=60).json()] == ["kept"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_taken_port_is_told(tmp_path: Path, server: Server) -> None:
    command = [sys.executable, "-m", "enrollment.fakeforge", "--root", str(tmp_path), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == 1 and "cannot listen" in done.stderr and "Traceback" not in done.stderr
