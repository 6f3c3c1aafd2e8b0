"""`cc-ci new-tests` and `cc-ci test`, as a person types them, and the stages that options and the environment choose."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import CommandError

from runs.harness.protocol import Results
from runs.local import chosen
from runs.management.commands.new_tests import first_test

pytestmark = pytest.mark.slow(1.2)

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "data" / "recipes"
USUAL = ["install", "upgrade", "backup", "restore", "custom"]


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A copy of a recipe of the tests' data, without its tests unless asked for."""

    def recipe(name: str, tests: bool = False) -> Path:
        folder = tmp_path / name
        shutil.copytree(RECIPES / name, folder)
        if not tests:
            shutil.rmtree(folder / "tests", ignore_errors=True)
        return folder

    return recipe


def cc_ci(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Type it in that folder: exit code, output, what is shown."""
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "CI")} | environment
    env |= {
        "CC_CI_DATA_DIR": str(folder.parent / "data"),
        "CC_CI_DEPLOYER": "process",
        "CC_CI_ENV_FILE": os.devnull,
        "CC_CI_PICTURES": "no",
    }
    command = [sys.executable, str(ROOT / "manage.py"), *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


class _Running:
    """An app that somebody else runs, at `url`; it says `status`."""

    def __init__(self) -> None:
        self.status = 200
        running = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(running.status)
                self.end_headers()
                self.wfile.write(f"Hello of {self.headers['Host']}".encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def running() -> Iterator[_Running]:
    app = _Running()
    threading.Thread(target=app.server.serve_forever, daemon=True).start()
    yield app
    app.server.shutdown()
    app.server.server_close()


@pytest.mark.parametrize(("name", "file"), [("process-web", "test_page.py"), ("no-web-port", "test_services.py")])
def test_the_first_file_passes_and_is_never_overwritten(recipe: Any, name: str, file: str) -> None:
    folder = recipe(name)
    code, output, shown = cc_ci(folder, "new-tests")
    assert code == 0, shown
    assert output.split("\n\n") == [f"Wrote tests/{file}. Now type:", "    cc-ci test .\n"]

    code, _, shown = cc_ci(folder, "test", "--stages", "custom")
    assert code == 0, shown
    assert "1 of 1" in shown and "passed in" in shown
    written = (folder / "tests" / file).read_bytes()

    code, _, shown = cc_ci(folder, "new-tests", ".")
    assert code == 64
    assert f"tests/{file} already exists and was left unchanged." in shown
    assert (folder / "tests" / file).read_bytes() == written


def test_the_first_file_notices_what_is_wrong(recipe: Any, running: _Running) -> None:
    folder = recipe("process-web")
    assert cc_ci(folder.parent, "new_tests", "process-web")[0] == 0
    running.status = 500
    code, _, shown = cc_ci(folder, "test", "--app", running.url)
    assert code == 1
    assert "the app says 500" in shown


def test_the_documentation_shows_the_first_file(recipe: Any) -> None:
    name, text = first_test(recipe("process-web"))
    shown = f"# tests/{name}\n{text.partition(chr(10) * 3)[2]}"
    assert shown in (ROOT / "docs" / "write-tests.md").read_text()


def test_a_folder_that_is_no_recipe_gets_no_tests(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    code, _, shown = cc_ci(folder, "new-tests")
    assert code == 64
    assert "Could not write tests: The recipe has no file compose.yml." in shown
    assert list(folder.iterdir()) == []


def test_an_app_that_runs_already_is_asked_and_left_alone(recipe: Any, running: _Running) -> None:
    folder = recipe("process-web")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_install.py").write_text("def test_up(app):\n    assert app.get().ok\n")
    (folder / "tests" / "test_page.py").write_text(
        "def test_page(app):\n    assert app.get().text == 'Hello of 127.0.0.1'\n"
        "def test_exec(app):\n    app.exec('true')\n"
        "def test_services(app):\n    app.services()\n"
    )
    code, output, shown = cc_ci(folder, "test", "--app", running.url, "--json")
    results = Results.model_validate(json.loads(output))
    assert code == 0, shown
    assert (results.deployments, results.deployer, results.version) == (0, "", "")
    statuses = {stage.name: stage.status for stage in results.stages}
    assert statuses == dict.fromkeys(["upgrade", "backup", "restore"], "not_applicable") | {
        "install": "passed",
        "custom": "passed",
    }
    assert "already running" in results.stages[1].reason
    skipped = {case.name: case.message + case.output for case in results.stages[4].cases if case.status == "skipped"}
    assert set(skipped) == {"test_exec", "test_services"}
    assert "app.exec is not available: cc-ci did not deploy this app (--app), so it cannot run commands in it." in str(skipped)

    (folder / "tests" / "test_page.py").write_text("def test_page(app):\n    assert 'Goodbye' in app.get().text\n")
    code, _, shown = cc_ci(folder, "test", ".", "--app", running.url, "--stages", "custom")
    assert code == 1
    assert "custom: 1 of 1 tests failed: test_page." in shown
    assert not list((folder.parent / "data" / "local-runs").iterdir())


def test_an_app_that_is_not_there_is_2_and_nonsense_is_64(recipe: Any) -> None:
    folder = recipe("process-web", tests=True)
    code, _, shown = cc_ci(folder, "test", "--app", "http://127.0.0.1:9")
    assert code == 2
    assert "No HTTP response from http://127.0.0.1:9." in " ".join(shown.split())
    for url in ("127.0.0.1:80", "ftp://example.org", "https://example.org/sub", "http://", "http://a:b"):
        code, _, shown = cc_ci(folder, "test", "--app", url)
        assert (code, f"Invalid --app {url}: expected https://app.example.org" in shown) == (64, True)
    code, _, shown = cc_ci(folder, "test", "nowhere")
    assert code == 64 and "There is no folder nowhere." in shown


def test_the_environment_chooses_the_stages_of_both_commands(recipe: Any) -> None:
    folder = recipe("process-web")
    for words in (["run", "."], ["test"]):
        code, _, shown = cc_ci(folder, *words, STAGES="instal")
        assert code == 64
        assert "Unknown stage 'instal' (from STAGES in the environment). Did you mean install?" in shown
    code, output, shown = cc_ci(folder, "test", "--json", STAGES="install", EXTRA_TESTS="1")
    assert code == 0, shown
    assert [stage["name"] for stage in json.loads(output)["stages"]] == ["install", "extra"]


@pytest.mark.parametrize(
    ("option", "extra", "environ", "stages"),
    [
        ("", False, {}, USUAL),
        ("", True, {}, [*USUAL, "extra"]),
        ("custom, install", False, {}, ["install", "custom"]),
        ("install", True, {}, ["install", "extra"]),
        ("", False, {"STAGES": "extra"}, ["extra"]),
        ("", False, {"STAGES": "restore,backup"}, ["backup", "restore"]),
        ("", False, {"STAGES": ""}, USUAL),
        ("", False, {"EXTRA_TESTS": "1"}, [*USUAL, "extra"]),
        ("", False, {"EXTRA_TESTS": "0"}, USUAL),
        ("", False, {"STAGES": "install", "EXTRA_TESTS": "true"}, ["install", "extra"]),
        ("custom", False, {"STAGES": "install"}, ["custom"]),
        ("custom", False, {"STAGES": "nonsense"}, ["custom"]),
    ],
)
def test_the_stages_of_a_run(option: str, extra: bool, environ: dict[str, str], stages: list[str]) -> None:
    assert chosen(option, extra, environ) == stages


@pytest.mark.parametrize(
    ("option", "environ", "said"),
    [
        ("instal", {}, "Unknown stage 'instal'. Did you mean install? Stages: install, upgrade, "),
        ("", {"STAGES": "install,extras"}, r"Unknown stage 'extras' \(from STAGES in the environment\). Did you mean extra\?"),
        ("", {"EXTRA_TESTS": "yess"}, r"Invalid EXTRA_TESTS 'yess'. Did you mean yes\? Set it to 1 or 0."),
        ("", {"EXTRA_TESTS": "2"}, r"Invalid EXTRA_TESTS '2'. Set it to 1 or 0."),
    ],
)
def test_a_wrong_value_is_misuse_with_the_nearest_valid_one(option: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(CommandError, match=said.replace("install?", r"install\?")) as raised:
        chosen(option, False, environ)
    assert raised.value.returncode == 64
