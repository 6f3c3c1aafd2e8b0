"""`make demo`: what a stranger types first."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from controlplane.config import BASE_DIR
from enrollment.fakeforge.image import NoImage
from infra.deployers.docker.api import KINDS, ids
from infra.deployers.docker.cli import LABEL_INSTALLATION
from runs import demo
from tests.docker import need_swarm

COMMAND = [sys.executable, "-m", "runs.demo", "--port", "0"]
DATA_IS_GONE = "app:/www/notes was on the volume notes and is now on web, which is empty"
#: There is one demo at a time in a folder.
alone = pytest.mark.xdist_group("demo")


@alone
@pytest.mark.crash
@pytest.mark.docker
@pytest.mark.slow(50)
def test_on_a_swarm_the_demo_shows_each_stage_and_leaves_nothing() -> None:
    need_swarm()
    done = subprocess.run([*COMMAND, "--once"], cwd=BASE_DIR, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "Recipes are deployed on this machine's Docker Swarm" in said
    for line in (
        "✓ hello-web passed, level 5 of 5",
        "✓ broken-web failed, level 3 of 5 custom: 1 of 3 tests failed: test_front_page_greets.",
        f"✓ forgetful-web failed, level 1 of 5 upgrade: {DATA_IS_GONE}",
    ):
        assert line in said
    assert done.stdout.rstrip().endswith("demo: ok") and done.stderr == ""
    (installation,) = {json.loads(file.read_text())["installation_id"] for file in demo.RUNS.glob("*/*/request.json")}
    assert [name for kind in KINDS for name in ids(kind, f"{LABEL_INSTALLATION}={installation}")] == []


@alone
@pytest.mark.crash
@pytest.mark.slow(20)
def test_without_docker_the_demo_says_so_shows_less_and_runs_until_it_is_stopped() -> None:
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere.sock"}
    with subprocess.Popen(COMMAND, cwd=BASE_DIR, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout or ())
            said = "".join([*itertools.takewhile(lambda line: "Running until" not in line, lines)])
            places = re.findall(r"^  \d\. (http\S+)$", said, re.MULTILINE)
            assert len(places) == 5 and all(requests.get(place, timeout=60).ok for place in places)
            second = subprocess.run(COMMAND, cwd=BASE_DIR, capture_output=True, text=True, timeout=300)
            assert second.returncode == 1 and "Another demo is running in this folder." in second.stdout
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 143
    said = " ".join(said.split())
    assert "as plain processes, because no Docker Swarm can be used: Docker does not answer" in said
    for verdict in ("hello-web passed", "broken-web failed", "forgetful-web passed"):
        assert f"✓ {verdict}, level 1 of 5" in said
    with pytest.raises(requests.ConnectionError):
        requests.get(places[1], timeout=60)


def no_image(name: str) -> None:
    raise NoImage("busybox is not installed.")


@pytest.mark.parametrize(
    ("asked", "swarm", "image", "chosen", "why"),
    [
        ("", "", lambda name: None, "swarm", "on this machine's Docker Swarm"),
        ("", "There is none.", lambda name: None, "process", "because no Docker Swarm can be used: There is none."),
        ("", "", no_image, "process", "because no Docker Swarm can be used: busybox is not installed."),
        ("process", "", lambda name: None, "process", "because CC_CI_DEPLOYER asks for it."),
    ],
)
def test_the_choice_of_the_deployer_is_explained(
    asked: str,
    swarm: str,
    image: Callable[[str], None],
    chosen: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC_CI_DEPLOYER", asked or "auto")
    monkeypatch.setattr(demo, "swarm_problem", lambda: swarm)
    monkeypatch.setattr(demo, "import_busybox", image)
    monkeypatch.setattr(demo, "nodes", lambda: 1)
    assert demo._deployer() == chosen
    assert why in " ".join(capsys.readouterr().out.split())


def test_an_image_of_this_machine_is_not_for_a_swarm_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "nodes", lambda: 3)
    assert "The Swarm has 3 machines" in demo._image_problem()


def test_a_swarm_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_DEPLOYER", "swarm")
    monkeypatch.setattr(demo, "swarm_problem", lambda: "There is none.")
    with pytest.raises(demo.DemoFailed, match="There is none"):
        demo._deployer()


def test_a_run_that_did_not_end_well_is_asked_to_end_and_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        swept.append(command)
        return subprocess.CompletedProcess(command, 1, "left volume notes\n", "")

    monkeypatch.setattr(demo, "RUNS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    demo._remove_runs("Nothing to do")
    folder = tmp_path / "a" / "1"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text('{"installation_id": "of-the-demo"}')
    with pytest.raises(demo.DemoFailed, match="left volume notes"):
        demo._remove_runs("Removing")
    assert (folder / "cancel").exists() and len(swept) == 1 and "of-the-demo" in swept[0]
