"""`cc-ci run`, as a person starts it: exit codes, what is shown, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runs.harness.protocol import Results
from tests.runs.harness.conftest import ROOT, git, make_recipe

__all__ = ["make_recipe"]
RECIPE = ROOT / "tests" / "data" / "recipes" / "process-web"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "CI", "DOCKER_HOST")}
        env |= {
            "CC_CI_DATA_DIR": str(tmp_path / "data"),
            "CC_CI_DEPLOYER": "process",
            "CC_CI_ENV_FILE": os.devnull,
            "CC_CI_PICTURES": "no",
        }
        command = [sys.executable, str(ROOT / "manage.py"), "run", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=env, text=True, cwd=tmp_path, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=30)


@pytest.fixture
def cc_ci(start: Any) -> Any:
    def cc_ci(*arguments: str | Path) -> tuple[int, str, str]:
        process = start(*arguments)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    return cc_ci


def test_a_good_recipe_is_0_with_a_table(cc_ci: Any, tmp_path: Path) -> None:
    code, output, shown = cc_ci(RECIPE)
    assert code == 0, shown
    assert output == ""
    for words in ("Checked out", "Deploying with process", "install", "not applicable", "3 of 3", "passed in"):
        assert words in shown
    assert not list((tmp_path / "data" / "local-runs").iterdir())


def test_a_failing_recipe_is_1_with_the_failed_test_and_its_last_lines(cc_ci: Any, make_recipe: Any) -> None:
    code, _, shown = cc_ci(make_recipe({"test_page": "def test_title(app):\n    assert 'Other' in app.get().text\n"}))
    assert code == 1
    assert "tests/test_page.py: test_title" in shown
    assert "Hello from the process recipe" in shown
    assert "custom: 1 of 1 tests failed: test_title." in shown


def test_our_own_fault_is_2(cc_ci: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    code, _, shown = cc_ci(RECIPE, "--deployer", "swarm")
    assert code == 2
    assert "Docker does not answer" in " ".join(shown.split())


def test_json_is_the_results_and_nothing_else(cc_ci: Any) -> None:
    code, output, shown = cc_ci(RECIPE, "--json", "--stages", "install")
    results = Results.model_validate(json.loads(output))
    assert (code, shown) == (0, "")
    assert [stage.name for stage in results.stages] == ["install"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "instal"], "Did you mean install?"),
        (["--stages", "costum,install"], "Did you mean custom?"),
        (["--deployer", "kubernetes"], "invalid choice"),
        (["--sha", "abc"], "no full commit id"),
        (["--ref", "nothing"], "does not appear to be a git repository"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_misuse_is_64_and_says_what_is_meant(arguments: list[str], words: str, cc_ci: Any) -> None:
    code, _, shown = cc_ci(RECIPE, *arguments)
    assert code == 64
    assert words in shown


def test_a_folder_that_is_not_there_is_64(cc_ci: Any) -> None:
    code, _, shown = cc_ci("/nowhere")
    assert code == 64
    assert "There is no folder /nowhere" in shown


def test_a_commit_of_a_clone_url_is_pinned(cc_ci: Any, make_recipe: Any) -> None:
    recipe = make_recipe()
    git(recipe, "init", "--quiet", "--initial-branch=main")
    git(recipe, "add", ".")
    git(recipe, "commit", "--quiet", "-m", "One")
    (recipe / "www" / "index.html").unlink()  # the working tree is not what is asked for
    code, output, _ = cc_ci(f"file://{recipe}", "--json", "--untrusted")
    assert code == 0
    assert json.loads(output)["sha"] == git(recipe, "rev-parse", "HEAD")


def test_extra_tests_are_a_stage_of_their_own(cc_ci: Any) -> None:
    _, output, _ = cc_ci(RECIPE, "--json", "--stages", "install", "--extra-tests")
    assert [stage["name"] for stage in json.loads(output)["stages"]] == ["install", "extra"]


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_tears_down(number: signal.Signals, start: Any, make_recipe: Any, tmp_path: Path) -> None:
    process = start(make_recipe({"test_slow": "import time\ndef test_slow():\n    time.sleep(60)\n"}), "--json")
    until = time.monotonic() + 20
    while not list(tmp_path.glob("data/local-runs/*/1/log.txt")) or "Stage custom" not in _log(tmp_path):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 2, errors
    results = Results.model_validate(json.loads(output))
    assert results.verdict == "cancelled"
    assert results.teardown.clean


def _log(tmp_path: Path) -> str:
    return "".join(path.read_text() for path in tmp_path.glob("data/local-runs/*/1/log.txt"))
