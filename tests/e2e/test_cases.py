"""Recipes that people's habits made, each with the verdict that is right, as `cc-ci run` gives it on a real Docker Swarm.

A case is a folder of `tests/data/cases`: `head/` is the commit under test, `expect.json` holds why, and what has to be right.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enrollment.sandbox.image import import_busybox
from tests.docker import need_swarm
from tests.e2e.recipes import Repository
from tests.runs.harness.conftest import ROOT

pytestmark = pytest.mark.docker

CASES = ROOT / "tests" / "data" / "cases"


@pytest.mark.parametrize("name", sorted(case.name for case in CASES.iterdir()))
def test_a_recipe_of_the_world_gets_the_right_verdict(name: str, tmp_path: Path) -> None:
    need_swarm()
    import_busybox("cases/busybox:1")
    case = CASES / name
    expected: dict[str, Any] = json.loads((case / "expect.json").read_text())
    repository = Repository(tmp_path / "recipe", str(case / "head"), published="")
    command = [sys.executable, str(ROOT / "manage.py"), "run", str(repository.folder), "--json", "--deployer", "swarm"]
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "CI")}
    env |= {"CC_CI_DATA_DIR": str(tmp_path / "data"), "CC_CI_ENV_FILE": os.devnull, "CC_CI_PICTURES": "no"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert answer["verdict"] == expected["verdict"], answer["reason"]
    for stage, status in expected.get("stages", {}).items():
        assert stages[stage]["status"] == status, stages[stage]["reason"]
    for words in expected.get("says", []):
        assert re.search(words, json.dumps(answer, ensure_ascii=False)), answer["reason"]
