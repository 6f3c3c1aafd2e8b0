"""A recipe's app that signs people in by the provider that the server lends: on the real Swarm, by a real login in Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.docker.egress import GATEWAY
from runs.harness.engine import Engine
from runs.harness.protocol import Limits, Oidc, Results, Source, Verdict
from tests.docker import docker, need_swarm
from tests.e2e.recipes import DATA, folder_of, left
from tests.python_image import need_python
from tests.runs.harness.keycloak import Keycloak, keycloak
from tests.runs.harness.test_plugin import need_browser

pytestmark = [pytest.mark.docker, pytest.mark.browser]


def run(tmp_path: Path, there: Keycloak | None, **changes: Any) -> Results:
    recipe = tmp_path / "signs-in"
    shutil.copytree(DATA / "signs-in", recipe)
    compose = recipe / "compose.yml"
    compose.write_text(compose.read_text().replace("cc-ci-test/python:1", need_python()))
    limits = Limits(run_seconds=800, stage_seconds=300, settle_seconds=300, memory_mb=1024, processes=256)
    given = {"recipe": "signs-in", "stages": ["install", "custom"], "limits": limits, "trusted": False, **changes}
    if there:
        given["oidc"] = Oidc(url=there.url, user=there.user)
    folder = folder_of(tmp_path, Source(url=str(recipe)), None, **given)
    results = Engine(folder, {"oidc_password": there.password} if there else {}).run()
    assert left(folder) == []
    return results


def test_somebody_signs_in_to_an_app_with_names_of_its_own(tmp_path: Path) -> None:
    need_swarm()
    need_browser()
    # Where this machine is found by containers, by the sandbox's door, and by itself.
    address = json.loads(docker("network", "inspect", GATEWAY))[0]["IPAM"]["Config"][0]["Gateway"]
    with keycloak(address, address) as there:
        results = run(tmp_path, there)
    assert results.verdict is Verdict.PASSED, (results.reason, results.stages[-1], results.warnings)
    assert [case.status for case in results.stages[-1].cases] == ["passed"]
    assert set(there.realms) == {"master"} and results.secret_leaks == []


def test_without_a_provider_the_app_is_tested_as_far_as_it_goes(tmp_path: Path) -> None:
    """A secret that only the provider could give is made up, though the recipe says that people have to give it."""
    need_swarm()
    need_browser()
    changed = tmp_path / "changed"
    changed.mkdir()
    results = run(changed, None)
    assert results.stages[-1].status == "not_applicable", results
    assert "generate=false" not in results.reason
