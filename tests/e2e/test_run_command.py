"""`cc-ci run`, as a person starts it: exit codes, what is shown, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enrollment.fakeforge.image import import_busybox
from infra.deployers.probe import Address
from runs.harness.protocol import Results
from tests.docker import docker, need_swarm
from tests.runs.harness.conftest import ROOT, git, make_recipe

pytestmark = pytest.mark.slow(0.7)

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
            process.communicate(timeout=600)


def test_a_good_recipe_is_0_with_a_table(start: Any, tmp_path: Path) -> None:
    process = start(RECIPE)
    output, shown = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    assert output == ""
    for words in ("Checked out", "Deploying with process", "install", "not applicable", "3 of 3", "passed in"):
        assert words in shown
    assert not list((tmp_path / "data" / "local-runs").iterdir())


def test_a_failing_recipe_is_1_with_the_failed_test_and_its_last_lines(cc_ci: Any, make_recipe: Any) -> None:
    code, _, shown = cc_ci("run", make_recipe({"test_page": "def test_title(app):\n    assert 'Other' in app.get().text\n"}))
    assert code == 1
    assert "tests/test_page.py: test_title" in shown
    assert "Hello from the process recipe" in shown
    assert "custom: 1 of 1 tests failed: test_title." in shown


def test_an_error_is_told_when_it_happens_and_once_more_at_the_end(cc_ci: Any, make_recipe: Any) -> None:
    compose = "services:\n  app:\n    x-cc-ci-process: sh -c 'echo no configuration found; exit 7'\n"
    code, _, shown = cc_ci("run", make_recipe({}, {"compose.yml": compose}))
    assert code == 1
    assert " ".join(shown.split()).count("no configuration found") == 2


def test_our_own_fault_is_2(cc_ci: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    code, _, shown = cc_ci("run", RECIPE, "--deployer", "swarm")
    assert code == 2
    assert "Docker does not answer" in " ".join(shown.split())


def test_json_is_the_results_and_nothing_else(cc_ci: Any) -> None:
    code, output, shown = cc_ci("run", RECIPE, "--json", "--stages", "install")
    results = Results.model_validate(json.loads(output))
    assert (code, shown) == (0, "")
    assert [stage.name for stage in results.stages] == ["install"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "instal"], "Did you mean install?"),
        (["--stages", "costum,install"], "Did you mean custom?"),
        (["--deployer", "kubernetes"], "invalid choice"),
        (["--sha", "abc"], "expected 40 hex digits"),
        (["--ref", "nothing"], "does not appear to be a git repository"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_misuse_is_64_and_says_what_is_meant(arguments: list[str], words: str, cc_ci: Any) -> None:
    code, _, shown = cc_ci("run", RECIPE, *arguments)
    assert code == 64
    assert words in shown


def test_a_folder_that_is_not_there_is_64(cc_ci: Any) -> None:
    code, _, shown = cc_ci("run", "/nowhere")
    assert code == 64
    assert "There is no folder /nowhere" in shown


def test_a_commit_of_a_clone_url_is_pinned(cc_ci: Any, make_recipe: Any) -> None:
    recipe = make_recipe()
    git(recipe, "init", "--quiet", "--initial-branch=main")
    git(recipe, "add", ".")
    git(recipe, "commit", "--quiet", "-m", "One")
    (recipe / "www" / "index.html").unlink()  # the working tree is not what is asked for
    code, output, _ = cc_ci("run", f"file://{recipe}", "--json", "--untrusted")
    assert code == 0
    assert json.loads(output)["sha"] == git(recipe, "rev-parse", "HEAD")


def test_extra_tests_are_a_stage_of_their_own(cc_ci: Any) -> None:
    _, output, _ = cc_ci("run", RECIPE, "--json", "--stages", "install", "--extra-tests")
    assert [stage["name"] for stage in json.loads(output)["stages"]] == ["install", "extra"]


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_tears_down(number: signal.Signals, start: Any, make_recipe: Any, tmp_path: Path) -> None:
    process = start(make_recipe({"test_slow": "import time\ndef test_slow():\n    time.sleep(60)\n"}), "--json")
    until = time.monotonic() + 600
    while not list(tmp_path.glob("data/local-runs/*/1/log.txt")) or "Stage custom" not in _log(tmp_path):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 2, errors
    results = Results.model_validate(json.loads(output))
    assert results.verdict == "cancelled"
    assert results.teardown.clean


def _log(tmp_path: Path) -> str:
    return "".join(path.read_text() for path in tmp_path.glob("data/local-runs/*/1/log.txt"))


@pytest.mark.docker
def test_what_is_kept_is_found_and_removed_by_the_lines_that_are_told(cc_ci: Any, tmp_path: Path) -> None:
    need_swarm()
    import_busybox("cases/busybox:1")
    case = ROOT / "tests" / "data" / "cases" / "redirects-to-https-and-is-well" / "head"
    folder = tmp_path / "recipe"
    shutil.copytree(case, folder)
    code, output, shown = cc_ci("run", folder, "--keep", "--deployer", "swarm", "--stages", "install", "--json")
    assert code == 0, shown
    told = json.loads(output)["warnings"]
    try:
        [asked] = [text.partition("To reach it as its users do: ")[2] for text in told if "The app is at" in text]
        answer = subprocess.run(["sh", "-c", f"{asked}login"], capture_output=True, text=True, timeout=240)
        assert "Sign in" in answer.stdout, (asked, answer)
    finally:
        [line] = [text.partition("Remove it with: ")[2] for text in told if "Remove it with" in text]
        stack = line.partition("docker stack rm ")[2].partition(";")[0]
        assert stack.startswith("ccci-")
        subprocess.run(["sh", "-c", line], timeout=100, capture_output=True)
    assert stack not in docker("stack", "ls", "--format={{.Name}}")


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (
            Address("10.0.0.7", 8080),
            "curl -H 'Host: a.example.com' -H 'X-Forwarded-Proto: https' -H 'X-Forwarded-Host: a.example.com' http://10.0.0.7:8080/",
        ),
        (
            Address("10.0.0.7", 443, tls=True, proxied=True),
            "curl -k --resolve a.example.com:443:10.0.0.7 https://a.example.com:443/",
        ),
        (Address("fd00::1", 80, proxied=True), "curl -k --resolve a.example.com:80:[fd00::1] http://a.example.com:80/"),
        (Address(unix="/run/x.sock"), ""),
    ],
)
def test_the_line_that_asks_an_app(address: Address, line: str) -> None:
    assert address.typed("a.example.com") == line
