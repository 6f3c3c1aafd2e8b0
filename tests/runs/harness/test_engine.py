"""A whole run with the deployer process: verdicts, stages, words, teardown."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.deployers.context import stack_name
from infra.deployers.docker import images
from infra.deployers.isolation import bubblewrap, cgroups
from infra.deployers.probe import Address
from infra.deployers.process import deployer
from infra.deployers.process.deployer import ProcessDeployer
from runs.harness import artefacts, recipe_config, stages
from runs.harness.engine import Engine
from runs.harness.events import Journal
from runs.harness.protocol import Limits, Results, RunFolder, Verdict
from tests.runs.harness.conftest import RECIPES

pytestmark = pytest.mark.slow(0.7)

Run = Callable[..., Results]


def test_a_good_recipe_passes_every_stage_that_there_is(make_folder: Callable[..., RunFolder]) -> None:
    folder = make_folder(RECIPES / "process-web", stages=["install", "upgrade", "custom"])
    results = Engine(folder).run()
    assert results.verdict is Verdict.PASSED, results.reason
    assert [(stage.name, stage.status) for stage in results.stages] == [
        ("install", "passed"),
        ("upgrade", "not_applicable"),
        ("custom", "passed"),
    ]
    assert results.stages[1].reason == "The deployer process does not support it."
    assert [case.name for case in results.stages[0].cases] == ["the app answers", "test_answers_under_its_own_name"]
    assert len(results.stages[2].cases) == 3
    assert results.deployments == 1
    assert results.deployer == "process"
    assert results.teardown.clean
    assert folder.results() == results
    assert not (folder.path / "work").exists()
    assert not list(cgroups.existing(stack_name(results.run_id)))


def test_a_published_version_whose_tag_was_moved_is_another_setting(make_folder: Callable[..., RunFolder]) -> None:
    engine = Engine(make_folder(RECIPES / "process-web"))

    def settings(commit: str) -> str:
        ready = SimpleNamespace(config=recipe_config.RecipeConfig(), previous=SimpleNamespace(name="1.0.0+1", commit=commit))
        return engine._settings(ready)  # type: ignore[arg-type]

    assert settings("a" * 40) == settings("a" * 40) != settings("b" * 40)


def test_events_tell_the_story_in_order(make_folder: Callable[..., RunFolder]) -> None:
    folder = make_folder(RECIPES / "process-web")
    Engine(folder).run()
    events = list(folder.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    told = [(event.kind, event.stage) for event in events if event.kind != "step"]
    assert told == [
        ("begun", ""),
        ("stage_started", "install"),
        ("stage_finished", "install"),
        ("stage_started", "custom"),
        ("stage_finished", "custom"),
        ("finished", ""),
    ]
    assert events[-1].data == {"verdict": "passed"}
    assert next(e for e in events if e.kind == "stage_finished").data["status"] == "passed"
    assert "test_page.py" in folder.log.read_text()


def test_a_failing_test_fails_the_run_with_its_name(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_bad": "def test_no(app):\n    assert app.get().text == 'other'\n"}))
    assert results.verdict is Verdict.FAILED
    assert results.reason == "custom: 1 of 1 tests failed: test_no."
    case = results.stages[1].cases[0]
    assert case.file == "tests/test_bad.py"
    assert "Hello from the process recipe" in case.output


def test_a_picture_that_goes_wrong_decides_nothing(make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def picture(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(artefacts, "picture", picture)
    results = run(make_recipe({"test_bad": "def test_no():\n    assert 0\n"}), picture=True)
    assert (results.verdict, results.reason) == (Verdict.FAILED, "custom: 1 of 1 tests failed: test_no.")


def test_a_failing_install_skips_what_follows(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_install": "def test_no():\n    assert 0\n", "test_x": "def test_yes():\n    pass\n"}))
    assert [(s.name, s.status, s.reason) for s in results.stages] == [
        ("install", "failed", "1 of 1 tests failed: test_no."),
        ("custom", "skipped", "The stage install failed."),
    ]


def test_a_syntax_error_is_the_recipes_fault(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_bad": "def test_no(:\n"}))
    assert results.verdict is Verdict.FAILED
    assert "could not be collected: tests.test_bad" in results.reason


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tests/conftest.py": "import nothing_here\n"}, "ModuleNotFoundError: No module named 'nothing_here'"),
        ({"tests/conftest.py": "def broken(:\n"}, "SyntaxError: invalid syntax"),
        ({"pytest.ini": "[pytest]\naddopts = --no-such-option\n"}, "unrecognized arguments: --no-such-option"),
        ({"pytest.ini": "[pytest]\nminversion = 99\n"}, "'minversion' requires pytest-99"),
        (
            {"tests/conftest.py": "def pytest_collection_modifyitems(items):\n    raise ValueError('no such fruit')\n"},
            "ValueError: no such fruit",
        ),
    ],
)
def test_what_keeps_pytest_from_running_is_told_in_its_own_words(
    files: dict[str, str], words: str, make_recipe: Any, run: Run
) -> None:
    results = run(make_recipe({"test_x": "def test_yes():\n    pass\n"}, files), stages=["custom"])
    assert results.verdict is Verdict.FAILED
    assert words in results.reason, results.reason
    assert results.reason.count(words) == 1 and len(results.reason) < 1000


def test_a_broken_conftest_is_the_recipes_fault(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_x": "def test_yes():\n    pass\n"}, {"tests/conftest.py": "import nothing_here\n"}))
    assert results.verdict is Verdict.FAILED
    assert "could not load the tests" in results.reason


def test_no_tests_is_not_applicable(make_recipe: Any, run: Run) -> None:
    for tests in ({}, {"test_empty": "# to come\n"}):
        results = run(make_recipe(tests))
        assert results.verdict is Verdict.PASSED
        assert results.stages[1].status == "not_applicable"
        assert "no tests" in results.stages[1].reason


def test_nothing_tested_is_not_passed(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({}), stages=["upgrade", "custom"])
    assert results.verdict is Verdict.ERRORED
    assert "nothing was tested" in results.reason


def test_a_recipe_without_a_web_port_has_to_stay_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "QUIET_SECONDS", 0.5)
    results = run(RECIPES / "no-web-port")
    assert results.verdict is Verdict.PASSED, results.reason
    assert [case.name for case in results.stages[0].cases] == ["the services stay up"]


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_service_that_ends_fails_with_its_last_words_while_it_is_deployed_and_later(
    seconds: int, make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "QUIET_SECONDS", 240)  # it ends when the service does
    script = f"sleep {seconds}; echo no configuration found; exit 7"
    results = run(make_recipe({}, {"compose.yml": f"services:\n  app:\n    x-cc-ci-process: sh -c '{script}'\n"}))
    assert results.verdict is Verdict.FAILED
    assert "ended with exit code 7" in results.reason
    assert "no configuration found" in results.reason


def test_what_a_service_printed_is_read_before_its_end_is_known(
    make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "log", lambda *_: time.sleep(0.5))  # a slow disk
    monkeypatch.setattr(stages, "QUIET_SECONDS", 240)
    compose = "services:\n  app:\n    x-cc-ci-process: sh -c 'echo one; echo two; exit 7'\n"
    assert "app | one\napp | two" in run(make_recipe({}, {"compose.yml": compose})).reason


def test_services_have_to_stay_up_from_when_they_have_been_started(
    make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ProcessDeployer._read_log

    def late(self: ProcessDeployer, box: Any) -> None:
        time.sleep(3)
        read(self, box)

    monkeypatch.setattr(ProcessDeployer, "_read_log", late)
    monkeypatch.setattr(stages, "QUIET_SECONDS", 2.5)  # less than that reading takes
    compose = "services:\n  app:\n    x-cc-ci-process: sh -c 'exit 7'\n"
    assert "ended with exit code 7" in run(make_recipe({}, {"compose.yml": compose})).reason


def test_an_app_that_never_answers_fails_after_its_time(make_recipe: Any, run: Run) -> None:
    compose = "services:\n  app:\n    x-cc-ci-process: sh -c 'echo ${PORT}; sleep 100'\n"
    results = run(make_recipe({}, {"compose.yml": compose}), limits=Limits(settle_seconds=1))
    assert results.verdict is Verdict.FAILED
    assert results.reason.startswith("The app did not answer within 1 s: nothing answered.")


_SLOW = """
services:
  app:
    x-cc-ci-process: sh -c 'sleep 3; exec busybox httpd -f -p 127.0.0.1:${PORT}'
    deploy:
      labels: ["coop-cloud.${STACK_NAME}.timeout=LABEL"]
"""


@pytest.mark.parametrize(
    ("label", "settings", "limits", "verdict", "said"),
    [
        ("60", "", {}, Verdict.PASSED, ""),
        ("", "[limits]\nsettle_seconds = 60\n", {}, Verdict.PASSED, ""),
        ("60", "[limits]\nsettle_seconds = 1\n", {}, Verdict.FAILED, "The app did not answer within 1 s"),
        ("60", "", {"start_seconds": 2}, Verdict.FAILED, "The app did not answer within 2 s"),
        ("", "", {}, Verdict.FAILED, "The app did not answer within 1 s"),
    ],
)
def test_coming_up_has_a_time_of_its_own_as_the_recipe_asks_for(
    label: str, settings: str, limits: dict[str, int], verdict: Verdict, said: str, make_recipe: Any, run: Run
) -> None:
    recipe = make_recipe({}, {"compose.yml": _SLOW.replace("LABEL", label), "cc-ci.toml": settings})
    most = {"settle_seconds": 1, "stage_seconds": 2, "run_seconds": 3, **limits}  # longer than they, it takes to come up
    results = run(recipe, limits=Limits.model_validate(most), stages=["install"])
    assert (results.verdict, results.reason[: len(said)]) == (verdict, said)


def test_an_app_that_answers_500_is_not_installed(make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server = "import http.server\nclass H(http.server.BaseHTTPRequestHandler):\n"
    server += "    def do_GET(self):\n        self.send_error(500)\n"
    server += "import sys\nhttp.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    compose = "services:\n  app:\n    x-cc-ci-process: python server.py ${PORT}\n"
    recipe = make_recipe({}, {"compose.yml": compose, "server.py": server})
    until_it_answers(monkeypatch)
    results = run(recipe, limits=Limits(settle_seconds=100))
    assert results.verdict is Verdict.FAILED
    assert "its last answer was 500" in results.reason


def until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app has all its time to come up until it has given an answer, and none more after it."""
    answers: list[Any] = []

    def probe(*args: Any, **more: Any) -> Any:
        answers.append(deployer_probe(*args, **more))
        return answers[-1]

    deployer_probe = deployer.probe
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (1000 if any(answers) else 0), sleep=time.sleep)
    monkeypatch.setattr(deployer, "probe", probe)
    monkeypatch.setattr(deployer, "time", clock)


def test_services_reach_each_other_and_nothing_else(make_recipe: Any, run: Run) -> None:
    compose = """
services:
  app:
    x-cc-ci-process: busybox httpd -f -p 127.0.0.1:${PORT} -h www
  back-end:
    x-cc-ci-process: {command: [busybox, httpd, -f, -p, "127.0.0.1:${PORT}", -h, www]}
  client:
    x-cc-ci-process: sh -c "until busybox wget -qO www/got http://back-end:${PORT_BACK_END}/; do sleep 0.05; done; sleep 99"
"""
    test = """
import time
def test_both(app):
    for _ in range(100):
        if (answer := app.get("/got")).ok and answer.text:
            break
        time.sleep(0.05)
    assert "Hello" in answer.text
    assert "Hello" in app.exec("cat www/got", service="client").output
"""
    results = run(make_recipe({"test_two": test}, {"compose.yml": compose}))
    assert results.verdict is Verdict.PASSED, (results.reason, results.stages)


def test_results_that_pytest_did_not_write_prove_nothing(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_exit": "import os\ndef test_x():\n    os._exit(0)\n"}))
    assert results.verdict is Verdict.FAILED
    assert "without writing its results" in results.reason


def test_a_killed_test_process_is_named(make_recipe: Any, run: Run) -> None:
    results = run(make_recipe({"test_kill": "import os\ndef test_x():\n    os.kill(os.getpid(), 9)\n"}))
    assert results.verdict is Verdict.FAILED
    assert "signal 9" in results.reason


def test_the_run_has_a_time_limit(make_recipe: Any, run: Run) -> None:
    recipe = make_recipe({"test_slow": "import time\ndef test_x():\n    time.sleep(60)\n"})
    results = run(recipe, limits=Limits(run_seconds=2))
    assert results.verdict is Verdict.TIMED_OUT
    assert results.reason == "The run took longer than 2 s."
    assert results.teardown.clean


def test_a_request_to_cancel_is_heard_at_once(make_folder: Any, make_recipe: Any) -> None:
    folder = make_folder(make_recipe({"test_slow": "def test_x():\n    pass\n"}))
    folder.cancel.touch()
    results = Engine(folder).run()
    assert results.verdict is Verdict.CANCELLED
    assert results.deployments == 0
    assert [stage.status for stage in results.stages] == ["not_run", "not_run"]


def test_teardown_happens_when_the_harness_itself_fails(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torn: list[bool] = []
    teardown = ProcessDeployer.teardown

    def settle(_self: ProcessDeployer) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(ProcessDeployer, "settle", settle)
    monkeypatch.setattr(ProcessDeployer, "teardown", lambda self: torn.append(True) or teardown(self))
    results = Engine(make_folder(RECIPES / "process-web")).run()
    assert results.verdict is Verdict.ERRORED
    assert "RuntimeError: a mistake of ours" in results.reason
    assert torn == [True]


def _mistake(*_: object, **_named: object) -> Any:
    raise OverflowError("a mistake of ours")


@pytest.mark.parametrize(
    ("where", "name", "verdict"),
    [
        (ProcessDeployer, "state", Verdict.PASSED),
        (ProcessDeployer, "address", Verdict.PASSED),
        (Address, "way", Verdict.PASSED),
        (ProcessDeployer, "teardown", Verdict.ERRORED),
        (Engine, "_still_there", Verdict.ERRORED),
        (Engine, "_take_back", Verdict.ERRORED),
        (images, "prune", Verdict.PASSED),
    ],
)
def test_no_mistake_keeps_the_teardown_or_the_results_from_coming(
    where: Any, name: str, verdict: Verdict, make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the stages, which pass: nothing may come between the wish to tear down, the teardown, and the results."""
    torn: list[bool] = []
    teardown, stages_of = ProcessDeployer.teardown, Engine._stages

    def then(self: Engine, run: stages.Run) -> None:
        stages_of(self, run)
        monkeypatch.setattr(where, name, _mistake)

    monkeypatch.setattr(ProcessDeployer, "teardown", lambda self: torn.append(True) or teardown(self))
    monkeypatch.setattr(Engine, "_stages", then)
    folder = make_folder(RECIPES / "process-web")
    results = Engine(folder).run()
    assert (results.verdict, torn == [True]) == (verdict, name != "teardown"), results.reason
    assert folder.results() == results
    assert verdict is Verdict.PASSED or "crashed: OverflowError: a mistake of ours" in results.reason


def test_keeping_it_that_fails_is_told(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessDeployer, "keep", lambda self: [self.teardown(), _mistake()])
    results = Engine(make_folder(RECIPES / "process-web", keep=True)).run()
    assert results.reason.startswith(
        "The teardown left something behind: unknown leftovers: keeping the deployment crashed: OverflowError"
    )


def test_what_a_teardown_leaves_is_no_pass(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teardown = ProcessDeployer.teardown
    monkeypatch.setattr(ProcessDeployer, "teardown", lambda self: [*teardown(self), "volume x"])
    results = Engine(make_folder(RECIPES / "process-web")).run()
    assert results.verdict is Verdict.ERRORED
    assert results.teardown.left == ["volume x"]


def test_an_answer_that_does_not_stop_with_the_app_is_no_pass(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teardown = ProcessDeployer.teardown
    kept: list[ProcessDeployer] = []
    monkeypatch.setattr(ProcessDeployer, "teardown", lambda self: kept.append(self) or [])
    results = Engine(make_folder(RECIPES / "process-web")).run()
    teardown(kept[0])
    assert results.verdict is Verdict.ERRORED
    assert "something else answers there" in results.reason


@pytest.fixture
def _no_bubblewrap(path_without_bubblewrap: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", path_without_bubblewrap)
    bubblewrap.available.cache_clear()
    yield
    bubblewrap.available.cache_clear()


@pytest.mark.usefixtures("_no_bubblewrap")
def test_without_bubblewrap_strangers_are_refused_in_words(run: Run) -> None:
    results = run(RECIPES / "process-web", trusted=False)
    assert results.verdict is Verdict.ERRORED
    assert results.sandbox == "none"
    assert results.reason == (
        "A stranger's code may only run in a sandbox. bubblewrap (bwrap) is not installed. "
        "Install bubblewrap 0.5 or newer (apt-get install bubblewrap util-linux)."
    )
    assert results.deployments == 0


@pytest.mark.usefixtures("_no_bubblewrap")
def test_without_bubblewrap_friends_run_with_a_warning(make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_TEST_SECRET", "in-our-environment")
    test = "import os\ndef test_clean(app):\n    assert 'CC_CI_TEST_SECRET' not in os.environ\n    assert app.get().ok\n"
    sample = 'TYPE=x\nPOST_DEPLOY_CMDS="app init"\nPOST_UPGRADE_CMDS=\n#POST_UNDEPLOY_CMDS=app\n'
    results = run(make_recipe({"test_clean": test}, {".env.sample": sample}))
    assert results.verdict is Verdict.PASSED, (results.reason, results.stages)
    assert results.sandbox == "none"
    assert results.warnings == [
        "The recipe's code runs without a sandbox. bubblewrap (bwrap) is not installed. "
        "Install bubblewrap 0.5 or newer (apt-get install bubblewrap util-linux).",
        "abra runs the commands in POST_DEPLOY_CMDS; a run does not: call what tests need in tests/cc_ci_hooks.py.",
    ]


def test_results_are_written_last_and_whole(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(RECIPES / "process-web")
    renamed: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Any) -> Path:
        if Path(target).name == "results.json":
            json.loads(self.read_text())
            assert not folder.results_file.exists()
            assert list(folder.events())[-1].kind == "finished"
            renamed.append(str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    Engine(folder).run()
    assert renamed == [str(folder.results_file)]


def test_an_unknown_stage_says_so(run: Run) -> None:
    results = run(RECIPES / "process-web", stages=["instal"])
    assert results.verdict is Verdict.ERRORED
    assert "instal" in results.reason


def test_a_symlink_out_of_the_recipe_reads_nothing(make_recipe: Any, run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yml"
    secret.write_text("services: {app: {x-cc-ci-process: 'echo PLANTED'}}\n")
    recipe = make_recipe({})
    (recipe / "compose.yml").unlink()
    (recipe / "compose.yml").symlink_to(os.path.relpath(secret, recipe))
    results = run(recipe)
    assert results.verdict is Verdict.FAILED
    assert "compose.yml points outside the recipe" in results.reason


def test_an_app_that_takes_more_than_it_may_ends_the_run_and_fails_it(
    make_recipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of its tests: whoever waits there looks at the watch."""
    begun = time.monotonic()

    def exceeded(self: object) -> str:
        return "The app has written 9 MB, more than 1 MB." if time.monotonic() - begun > 3 else ""

    monkeypatch.setattr(ProcessDeployer, "exceeded", exceeded)
    results = run(make_recipe({"test_slow": "import time\ndef test_slow(app): time.sleep(300)\n"}))
    assert results.verdict is Verdict.FAILED, results.reason
    assert "The app has written 9 MB" in results.reason
    assert results.teardown.clean
