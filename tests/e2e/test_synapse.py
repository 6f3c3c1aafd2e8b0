"""The deferred tests of matrix-synapse, closed by the path that any maintainer takes: read the registry, port the tests in a pull
request, run it with extra tests on a real Swarm against the real Synapse, merge it, close the entries, merge their ticks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command

from enrollment.fakeforge import git
from runs.models import CaseResult, TestRun
from tests.docker import need_swarm
from tests.images import need_synapse
from tests.world import World

pytestmark = [pytest.mark.docker, pytest.mark.django_db]

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "data" / "recipes" / "matrix-synapse"
SHIPPED = ROOT / "docs" / "examples" / "DEFERRED.md"
PORTED = {
    "matrix-synapse-compress-state": "extra/test_compress_state.py",
    "matrix-synapse-complexity-limit": "extra/test_complexity_limit.py",
    "matrix-synapse-purge": "extra/test_purge.py",
}


def deferred(*words: str) -> str:
    output = io.StringIO()
    call_command("deferred", *words, stdout=output, stderr=io.StringIO())
    return output.getvalue()


def entries(*words: str) -> dict[str, dict[str, Any]]:
    return {entry["slug"]: entry for entry in json.loads(deferred("list", "--json", *words))}


@pytest.mark.timeout(1800)  # a machine's first time brings the image, too
def test_the_deferred_tests_of_matrix_synapse_are_ported_run_and_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    need_swarm()
    image = need_synapse()
    monkeypatch.setattr(settings.CC_CI, "deployer", "swarm")
    monkeypatch.setattr(settings.CC_CI, "pictures", False)

    # A recipe without extra tests, a pull request that brings them, and the registry.
    files = git.tree(RECIPE)
    files[".env.sample"] = files[".env.sample"].replace(b"cc-ci-test/synapse:latest", image.encode())
    extra = {name: files.pop(name) for name in list(files) if name.startswith("extra/")}
    remote = world.remote
    remote.add_repo("recipes", "matrix-synapse", files=files)
    remote.push("recipes/matrix-synapse", "port", extra, "Port the deferred tests", "alice")
    pull = remote.open_pull("recipes/matrix-synapse", "recipes/matrix-synapse", "port", "alice", "Port the deferred tests")
    remote.add_repo("recipes", "registry", files={"DEFERRED.md": SHIPPED.read_bytes()})
    remote.add_collaborator("recipes/registry", "cc-ci", "write")
    world.enroll("recipes/matrix-synapse", "recipes/registry")
    assert "3 entries, 3 changes." in deferred("sync", "recipes/registry")
    assert entries("--recipe", "matrix-synapse", "--open").keys() == PORTED.keys()

    # One run on the Swarm, as a maintainer asks for it.
    world.say("recipes/matrix-synapse", "!testme --stages install,extra", number=pull.number)
    world.hear()
    world.run_all(1200)
    run = TestRun.objects.get()
    bad = CaseResult.objects.filter(stage__run=run, status__in=["failed", "errored"])
    assert run.state == "passed", f"{run.reason}\n{list(bad.values_list('name', 'message', 'output'))}\n{run.log[-2000:]}"
    cases = run.stage_results.get(name="extra").cases
    assert set(cases.values_list("file", "status")) == {(file, "passed") for file in PORTED.values()}
    assert run.teardown["clean"]
    report = "\n".join(world.own_comments("recipes/matrix-synapse", pull.number))
    assert "This change ports the deferred test" in report
    assert all(slug in report.replace("\\", "") for slug in PORTED)

    # Merged, each entry is closed by its own pull request in the registry.
    remote.merge_pull(pull, "alice")
    for number, (slug, file) in enumerate(PORTED.items(), 1):
        deferred("close", slug, "--commit", pull.head_sha, "--test", file)
        remote.merge_pull(remote.pull("recipes/registry", number), "root")
    deferred("sync", "recipes/registry")

    closed = entries()
    assert {(entry["state"], entry["ticked"], entry["commit"]) for entry in closed.values()} == {("closed", True, pull.head_sha)}
    assert {slug: entry["test"] for slug, entry in closed.items()} == PORTED
    assert {entry["run"] for entry in closed.values()} == {run.url}
    text = git.git(remote.folder(remote.repo("recipes/registry")), "cat-file", "blob", "refs/heads/main:DEFERRED.md").decode()
    assert (text.count("- [x] **What:**"), text.count("- [ ]")) == (3, 0)
    assert len(text.splitlines()) == len(SHIPPED.read_text().splitlines()) + 3
