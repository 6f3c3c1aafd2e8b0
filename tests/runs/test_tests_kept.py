"""Tests that a forge's enrolment keeps for recipes of others: which repository, at which commit, and where it is told."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from enrollment.fakeforge import Fault
from enrollment.models import Forge, Repository
from runs import dispatcher, render
from runs.deferred import registry, sources
from runs.executors.local import credential_for, request_for
from runs.management.commands.test import Command
from runs.models import State, TestRun
from tests.factories import TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

DEFERRED = """## Open deferrals

### 2026-05-28 — web-purge

- [ ] **What:** Port `test_purge.sh`.
- **Filed by:** alice
- **Reason for deferral:** Too heavy.
"""


@pytest.fixture
def kept(world: World) -> World:
    """The world with a repository of tests, which its forge names."""
    world.remote.add_repo(
        "recipes", "tests", files={"tests/web/test_custom.py": "def test_it(): pass\n", "DEFERRED.md": DEFERRED}
    )
    forge("tests", "recipes/tests")
    return world


def forge(*arguments: str) -> str:
    out = StringIO()
    call_command("forge", *arguments, stdout=out)
    return out.getvalue()


def asked(world: World) -> TestRun:
    world.say("recipes/web")
    world.hear()
    return TestRun.objects.get()


def test_the_request_pins_the_commit(kept: World) -> None:
    run = asked(kept)
    before = request_for(run).tests
    assert before is not None
    sha = kept.remote.push("recipes/tests", "main", {"tests/web/test_more.py": "x"}, "More", "alice")
    assert before.url.endswith("/recipes/tests.git")
    after = request_for(run).tests
    assert after is not None
    assert (before.ref, after.ref) == ("refs/heads/main", "refs/heads/main")
    assert before.sha != after.sha == sha


def test_it_is_not_enrolled_by_that(kept: World) -> None:
    row = Repository.objects.get(name="tests")
    assert not row.active and Forge.objects.get().tests_repository == row
    kept.remote.open_issue("recipes/tests", kept.alice, "!testme")
    kept.hear()
    assert not TestRun.objects.exists()


def test_without_one_nothing_is_added(world: World) -> None:
    assert request_for(asked(world)).tests is None
    assert "only the recipes' own tests" in forge("tests", "--none")


def test_who_takes_its_old_name_is_not_asked_for_tests(kept: World) -> None:
    run, row = asked(kept), Repository.objects.get(name="tests")
    kept.remote.rename_repo("recipes/tests", "recipe-tests")
    kept.remote.add_repo("recipes", "tests", files={"tests/web/test_custom.py": "a stranger's"})
    found = request_for(run).tests
    assert found is not None and found.url.endswith("/recipes/recipe-tests.git")
    row.refresh_from_db()
    assert row.name == "recipe-tests"


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=404), Fault(body="<html>"), Fault(status=404, body="<html>")])
def test_a_forge_that_does_not_tell_starts_nothing_without_them(kept: World, fault: Fault) -> None:
    run, number = asked(kept), Repository.objects.get(name="tests").forge_repo_id
    kept.remote.faults = lambda request: fault if f"/repositories/{number}" in request.path else None
    dispatcher.dispatch()
    run.refresh_from_db()
    assert run.state == State.STARTING
    assert not Path(run.folder, "request.json").exists()


def test_the_credential_opens_a_private_one_too(kept: World) -> None:
    run = asked(kept)
    assert "git_token" not in credential_for(run)
    Repository.objects.filter(name="tests").update(private=True)
    assert "git_token" in credential_for(TestRun.objects.get())


@pytest.mark.parametrize(
    "arguments", [["tests"], ["tests", "recipes/tests", "--none"], ["tests", "nonsense"], ["tests", "recipes/no"]]
)
def test_what_cannot_be_meant_changes_nothing(kept: World, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        forge(*arguments)
    assert Forge.objects.get().tests_repository is not None


def test_its_deferred_entries_count_like_a_recipes(kept: World) -> None:
    source = sources.find_source("recipes/tests")
    assert registry.sync(source).added == ["web-purge"]
    (item,) = registry.items("web")
    assert (item.recipe.name, item.source_repository.name) == ("web", "tests")


def test_the_report_says_so(world: World) -> None:
    run = TestRunFactory(details={"kept": "0123456789ab"})
    (told,) = [text for text in render.findings(run) if "Tests kept on this server were added" in text]
    assert "0123456789ab" in told.replace("\u200b", "")


def test_on_a_laptop_a_folder_has_them(tmp_path: Path) -> None:
    recipe, tests = tmp_path / "web", tmp_path / "tests-of-ours"
    recipe.mkdir()
    (tests / "tests" / "web").mkdir(parents=True)
    options = {
        **dict.fromkeys(("app", "stages", "upgrade_from"), ""),
        **dict.fromkeys(("extra_tests", "untrusted", "keep", "json"), False),
        "source": str(recipe),
        "deployer": "process",
    }
    request = Command().request({**options, "tests": str(tests)})
    assert request.tests is not None and (request.tests.url, request.tests.sha) == (str(tests), "")
    assert Command().request({**options, "tests": ""}).tests is None
    with pytest.raises(CommandError, match="no folder tests/web"):
        Command().request({**options, "tests": str(recipe)})
    with pytest.raises(CommandError, match="--app"):
        Command().request({**options, "tests": str(tests), "app": "http://127.0.0.1:1"})
