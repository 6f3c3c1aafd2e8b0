"""A recipe's tests go with their stages, each with exactly one; its hooks are called with the app."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.base import Deployment
from infra.deployers.compose import files
from infra.deployers.context import Context, Service
from infra.deployers.process.deployer import ProcessDeployer
from runs.harness import extra_tests, junit, prepare, recipe_tests
from runs.harness.deadlines import Deadlines, TimedOut
from runs.harness.events import Journal
from runs.harness.protocol import RunFolder
from runs.harness.recipe_tests import HookResult, Outcome
from runs.harness.stage_table import STAGES
from tests.runs.harness.conftest import RECIPES

pytestmark = pytest.mark.slow(0.5)

EVERY_KIND = RECIPES / "own-tests-every-kind"


class _Nowhere:
    """Stands for the deployment of an app without a web port."""

    def address(self) -> None:
        return None

    def state(self) -> Deployment:
        return Deployment([Service("app", wanted=1, running=1)])


class Place:
    """A checkout and what is needed to run its tests and hooks."""

    def __init__(self, recipe: Path, folder: Path, deployer: Any = None) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copytree(recipe, folder / "checkout")
        self.context = Context(uuid.uuid4().hex, "test", recipe.name, folder / "checkout", folder, domain="app.localhost")
        self.journal = Journal(RunFolder(folder))
        self.deadlines = Deadlines(folder / "cancel", 600)
        self.deployer = deployer or _Nowhere()

    def run(self, stage: str) -> Outcome:
        files = recipe_tests.find(self.context.checkout, stage)
        return recipe_tests.run(stage, files, self.context, self.deployer, self.journal, self.deadlines, self.folder)

    def hook(self, name: str, value: str = "") -> HookResult:
        return recipe_tests.hook(name, self.context, self.deployer, self.journal, self.deadlines, self.folder, value)


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Place]:
    """The recipe with hooks, deployed."""
    place = Place(RECIPES / "own-tests-hooks", tmp_path / "place")
    place.deployer = ProcessDeployer(place.context)
    place.deployer.deploy()
    place.deployer.settle()
    yield place
    place.deployer.teardown()


def with_tests(tmp_path: Path, tests: dict[str, str]) -> Path:
    recipe = tmp_path / "recipe"
    for name, text in tests.items():
        path = recipe / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return recipe


def test_files_are_given_to_their_stage() -> None:
    given = {stage: recipe_tests.find(EVERY_KIND, stage) for stage in STAGES}
    assert given == {
        "install": ["tests/test_install.py"],
        "upgrade": ["tests/test_upgrade.py"],
        "backup": ["tests/deep/test_backup.py"],
        "restore": ["tests/test_restore.py"],
        "custom": ["tests/deep/test_mail.py", "tests/test_custom.py", "tests/test_page.py", "tests/test_slow.py"],
        "extra": [
            "extra/test_root.py",
            "tests/deep/extra/test_more.py",
            "tests/deep/test_mail.py",  # it speaks of the mark: whether it has it is for pytest to say
            "tests/extra/test_backup.py",
            "tests/extra/test_purge.py",
            "tests/test_extra.py",
            "tests/test_install.py",
            "tests/test_page.py",
            "tests/test_slow.py",
        ],
    }


def test_each_test_is_collected_in_exactly_one_stage(tmp_path: Path) -> None:
    place = Place(EVERY_KIND, tmp_path / "place")
    outcomes = {stage: place.run(stage) for stage in STAGES}
    names = {stage: {(case.file, case.name) for case in outcome.cases} for stage, outcome in outcomes.items()}

    assert {stage: outcome.status for stage, outcome in outcomes.items()} == dict.fromkeys(STAGES, "passed")
    assert names["install"] == {("tests/test_install.py", "test_installed")}
    assert names["upgrade"] == {("tests/test_upgrade.py", "test_upgraded")}
    assert names["backup"] == {("tests/deep/test_backup.py", "test_backed_up")}
    assert names["restore"] == {("tests/test_restore.py", "test_restored")}
    assert {name for _, name in names["custom"]} == {"test_custom", "test_mail", "test_page", "test_size[small]", "test_case"}
    counted = Counter(case for cases in names.values() for case in cases)
    assert set(counted.values()) == {1}
    assert len(counted) == _collected_without_a_run(place.context.checkout)
    # What is found by reading alone is what pytest finds.
    read = {(test.file, test.name.rpartition("::")[2]) for test in extra_tests.find(EVERY_KIND)}
    assert {(file, name.partition("[")[0]) for file, name in names["extra"]} == read


def _collected_without_a_run(recipe: Path) -> int:
    """How many tests there are for a plain pytest."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    command += ["-c", "/dev/null", "-p", "runs.harness.guest.cc_ci_plugin", "--import-mode=importlib", "--strict-markers"]
    path = f"{Path(__file__).parents[3]}:{recipe / 'tests' / 'extra'}"
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, "tests", "extra"], cwd=recipe, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return sum("::" in line for line in done.stdout.splitlines())


def test_a_stage_without_a_test_of_its_own_does_not_apply(tmp_path: Path) -> None:
    marked = "import pytest\n@pytest.mark.extra\ndef test_long():\n    pass\n"
    place = Place(with_tests(tmp_path, {"tests/test_long.py": marked}), tmp_path / "place")
    assert place.run("custom").status == "not_applicable"  # its only test is extra
    assert place.run("install").status == "not_applicable"  # no file at all
    assert [case.name for case in place.run("extra").cases] == ["test_long"]


def test_a_mark_made_in_a_conftest_is_no_way_out_of_every_stage(tmp_path: Path) -> None:
    tests = {
        "tests/conftest.py": "def pytest_itemcollected(item):\n    if 'slow' in item.name:\n        item.add_marker('extra')\n",
        "tests/test_a.py": "def test_slow_a():\n    pass\ndef test_quick():\n    pass\n",
    }
    place = Place(with_tests(tmp_path, tests), tmp_path / "place")
    assert recipe_tests.find(place.context.checkout, "extra") == ["tests/test_a.py"]
    assert [case.name for case in place.run("custom").cases] == ["test_quick"]
    assert [case.name for case in place.run("extra").cases] == ["test_slow_a"]


def test_what_is_kept_of_a_stage_or_hook_holds_no_secret(tmp_path: Path) -> None:
    secret = "made-for-this-run-9"
    tests = {
        "tests/test_a.py": f"def test_it():\n    assert {secret!r} == 'other', 'was {secret}'\n",
        recipe_tests.HOOKS_FILE: f"def before_custom(app):\n    raise ValueError({secret!r})\n",
    }
    place = Place(with_tests(tmp_path, tests), tmp_path / "place")
    place.journal.hide([secret])
    assert place.run("custom").status == "failed"
    assert not place.hook("before_custom").ok
    kept = {name: (place.folder / name).read_text() for name in ("junit-custom.xml", "hook-before_custom.txt", "log.txt")}
    assert all("[secret]" in text and secret not in text for text in kept.values())
    assert place.journal.leaks == set(kept)
    assert junit.parse(kept["junit-custom.xml"].encode())[0].status == "failed"


def test_links_out_of_the_recipe_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "test_secret.py").write_text("import pytest\n@pytest.mark.extra\ndef test_secret_name(): pass\n")
    recipe = with_tests(tmp_path, {"tests/test_a.py": ""})
    (recipe / "tests" / "test_link.py").symlink_to(outside / "test_secret.py")
    (recipe / "extra").symlink_to(outside)
    assert recipe_tests.find(recipe, "extra") == []
    assert extra_tests.find(recipe) == []
    (recipe / "tests" / "cc_ci_hooks.py").symlink_to(outside / "test_secret.py")
    assert recipe_tests.hooks(recipe) == set()


def test_hooks_are_found_without_running_them(tmp_path: Path) -> None:
    assert recipe_tests.hooks(RECIPES / "own-tests-hooks") == {"before_install", "before_custom", "write_marker", "read_marker"}
    assert recipe_tests.hooks(EVERY_KIND) == set()
    touch = f"open({str(tmp_path / 'touched')!r}, 'w')\ndef before_extra(app): pass\nclass X:\n    def before_backup(app): pass\n"
    recipe = with_tests(tmp_path, {recipe_tests.HOOKS_FILE: touch})
    assert recipe_tests.hooks(recipe) == {"before_extra"}
    assert not (tmp_path / "touched").exists()
    for broken in ("def before_extra(app:", "\0", "(" * 5000, "#" * 300_000):
        (recipe / recipe_tests.HOOKS_FILE).write_text(broken)
        assert recipe_tests.hooks(recipe) == set()


def test_hooks_seed_the_app_and_carry_a_marker(deployed: Place) -> None:
    value = recipe_tests.marker(deployed.context)
    assert deployed.hook("before_install") == HookResult(ran=True, ok=True)
    assert deployed.hook("before_custom", value) == HookResult(ran=True, ok=True)
    assert deployed.hook("write_marker", value).ok
    assert deployed.hook("read_marker") == HookResult(ran=True, ok=True, value=value)
    assert deployed.hook("before_backup") == HookResult(ran=False, ok=True)
    outcome = deployed.run("custom")  # the tests see the seed, the same marker, and what runs
    assert (outcome.status, len(outcome.cases)) == ("passed", 2), outcome.cases


def test_the_marker_is_the_runs_own() -> None:
    def of(run_id: str) -> str:
        return recipe_tests.marker(Context(run_id, "test", "web", Path("/"), Path("/")))

    assert of("a" * 32) == of("a" * 32) != of("b" * 32)


HOOKS = """
import pytest, sys, time

def before_upgrade(app):
    wanted = "the seed"
    assert wanted in "something else"

def before_backup(app):
    pytest.fail("no room for the seed")

def before_restore(app):
    sys.exit("enough")

def before_custom(app):
    time.sleep(60)

def before_extra():
    return 17

def read_marker(app):
    return None

def write_marker(app, value):
    import os
    os._exit(0)
"""


def test_a_hook_that_raises_is_the_recipes_failure_with_its_last_lines(tmp_path: Path) -> None:
    place = Place(with_tests(tmp_path, {recipe_tests.HOOKS_FILE: HOOKS}), tmp_path / "place")
    done = place.hook("before_upgrade")
    assert (done.ran, done.ok) == (True, False)
    assert done.reason.startswith("The hook before_upgrade of tests/cc_ci_hooks.py failed: Traceback")
    assert done.reason.endswith("AssertionError") and 'assert wanted in "something else"' in done.reason
    assert "cc_ci_plugin" not in done.reason
    assert done.reason in (place.folder / "hook-before_upgrade.txt").read_text()
    for name, said in (
        ("before_backup", "no room for the seed"),
        ("before_restore", "SystemExit: enough"),
        ("read_marker", "read_marker returned None"),
        ("write_marker", "exited with code 0 and left no result"),
    ):
        done = place.hook(name)
        assert (done.ran, done.ok, done.value) == (True, False, "")
        assert said in done.reason
    assert place.hook("before_extra") == HookResult(ran=True, ok=True)

    place.deadlines.stage("custom", 1)
    with pytest.raises(TimedOut):
        place.hook("before_custom")


@pytest.mark.parametrize(
    ("code", "data", "said"),
    [
        (0, b"", "left no result"),
        (0, b"[]", "left no result"),
        (0, b'{"value": 3}', "left no result"),
        (0, b"[" * 100_000, "left no result"),
        (0, b'{"error": "boom"}', "failed: boom"),
        (137, b'{"value": "fine"}', "failed: exit code 137"),
        (0, b'{"value": "' + b"x" * 20_000 + b'"}', "more than 10000"),
    ],
)
def test_a_hooks_result_is_not_believed_blindly(code: int, data: bytes, said: str) -> None:
    done = recipe_tests.judge_hook("read_marker", code, data)
    assert (done.ran, done.ok, done.value) == (True, False, "")
    assert said in done.reason


@pytest.mark.parametrize("target", ["a" * 300, "a/" * 2000, "itself"])
def test_a_symlink_that_leads_nowhere_is_no_file(target: str, tmp_path: Path) -> None:
    for name in ("cc-ci.toml", ".env", "conftest.py", "itself", recipe_tests.HOOKS_FILE, "tests/test_x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    assert prepare._own_file(tmp_path) is None
    assert files.text(tmp_path, ".env") == ""
    assert recipe_tests.hooks(tmp_path) == set()
    assert extra_tests.find(tmp_path) == []
    assert Path("conftest.py") not in extra_tests.files(tmp_path)[1]
