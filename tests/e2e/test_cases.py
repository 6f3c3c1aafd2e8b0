"""Recipes that people's habits made, each with the verdict that is right, as `cc-ci run` gives it on a real Docker Swarm.

A case is a folder of `tests/data/cases`: `head/` is the commit under test, `v1/` the version published before it, if any, `kept/`
tests that are kept apart from it, if any, and `expect.json` holds why, and what has to be right.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from enrollment.fakeforge.image import import_busybox
from tests.docker import need_swarm
from tests.e2e.conftest import Command
from tests.e2e.recipes import Repository
from tests.runs.harness.conftest import ROOT, git

pytestmark = pytest.mark.docker

CASES = ROOT / "tests" / "data" / "cases"


def _expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CASES / name / "expect.json").read_text())
    return found


def _cases() -> list[tuple[str, str]]:
    """Each case on each deployer that it is for: the Swarm, unless it says others."""
    names = sorted(case.name for case in CASES.iterdir())
    return [(name, deployer) for name in names for deployer in _expected(name).get("deployers", ["swarm"])]


@pytest.mark.parametrize(("name", "deployer"), _cases())
def test_a_recipe_of_the_world_gets_the_right_verdict(name: str, deployer: str, cc_ci: Command, tmp_path: Path) -> None:
    need_swarm()
    import_busybox("cases/busybox:1")
    case = CASES / name
    expected = _expected(name)
    repository = make(case, tmp_path / "recipe")
    options = expected.get("options", ["--deployer", deployer])
    if (case / "kept").is_dir():
        options = [*options, "--tests", str(case / "kept")]
    _, output, shown = cc_ci("run", repository, "--json", *options)
    assert output, shown
    check(json.loads(output), expected)


def make(case: Path, folder: Path) -> Path:
    """The repository of a case."""
    before = case / "v1"
    if not before.is_dir():
        return Repository(folder, str(case / "head"), published="").folder
    repository = Repository(folder, str(before), published="1.0.0+1")
    git(folder, "rm", "--quiet", "-r", ".")
    shutil.copytree(case / "head", folder, dirs_exist_ok=True)
    repository.commit("head")
    return folder


def check(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    whole = json.dumps(answer, ensure_ascii=False)
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert answer["verdict"] == expected.get("verdict", answer["verdict"]), answer["reason"]
    for stage, status in expected.get("stages", {}).items():
        assert stages[stage]["status"] == status, stages[stage]["reason"]
    for stage, proven in expected.get("proven", {}).items():
        assert stages[stage]["proven"] is proven, stages[stage]["reason"]
    level = answer["level"]["value"] if answer["level"] else 0
    assert expected.get("level_at_least", 0) <= level <= expected.get("level_at_most", 5), answer["level"]
    for words in expected.get("says", []):
        assert re.search(words, whole), f"nothing says {words}: {answer['reason']}"
    for words in expected.get("says_not", []):
        assert not re.search(words, whole), f"something says {words}"
