"""Every stage on a real Docker Swarm: upgrade from the published version, backup and restore with markers, extra tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.deployers.docker.cli import docker
from runs.harness.browser import chromium
from runs.harness.engine import Engine
from runs.harness.protocol import Results, RunFolder, Verdict
from tests.docker import need_swarm
from tests.e2e.recipes import ALL, FIRST, NEXT, Repository, folder_of, left

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def _swarm() -> None:
    need_swarm()


@pytest.fixture
def recipe(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "whole")


def run(folder: RunFolder) -> Results:
    results = Engine(folder).run()
    assert left(folder) == []
    return results


def statuses(results: Results) -> dict[str, str]:
    return {stage.name: stage.status for stage in results.stages}


def reason(results: Results, stage: str) -> str:
    return next(result.reason for result in results.stages if result.name == stage)


def test_every_stage_of_a_pull_request(recipe: Repository, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, recipe.pull(NEXT), recipe.main, stages=[*ALL, "extra"], picture=True)
    results = run(folder)
    assert results.verdict is Verdict.PASSED, results.reason
    assert statuses(results) == dict.fromkeys([*ALL, "extra"], "passed")
    assert (results.upgraded_from, results.version, results.deployments) == (FIRST, "1.1.0+1.36.1", 1)
    cases = {stage.name: [case.name for case in stage.cases] for stage in results.stages}
    assert cases["install"] == ["the app answers", "test_the_page_is_there"]
    assert cases["upgrade"][:3] == ["the deployment moved to the commit", "the app answers", "the data is still there"]
    assert set(cases["upgrade"][3:]) == {"test_the_label_is_the_commits", "test_the_page_is_there"}
    assert cases["backup"] == ["a backup is made", "test_the_dump_is_complete"]
    assert cases["restore"] == ["the backup can be restored", "the app answers", "test_the_rows_are_the_markers"]
    assert cases["custom"] == ["test_answers"]
    assert set(cases["extra"]) == {"test_a_long_look_at_the_hooks", "test_many_requests"}
    assert all(stage.proven for stage in results.stages)
    assert results.level and results.level.value >= 4
    assert [(claim.name, claim.says, claim.shown, claim.agrees) for claim in results.metadata] == [
        ("Healthcheck", "Yes", "Yes", True),
        ("Backups", "Yes", "Yes", True),
        ("Tests", "2", "3", False),
    ]
    assert results.extras.not_run == 0
    assert results.secret_leaks == []
    steps = {timing.step for timing in results.timings}
    assert {"checkout", "deploy", "settle", "upgrade", "backup", "restore", "tests", "teardown"} <= steps
    kinds = {artefact.kind for artefact in results.artefacts}
    assert {"junit", "service_log", "docker_events"} <= kinds
    assert "picture" in kinds or not chromium()
    assert "create" in (folder.path / "docker-events.txt").read_text()
    assert json.loads(folder.results_file.read_text())["schema_version"] == 1


def test_a_change_that_is_not_deployed_has_nothing_to_upgrade(recipe: Repository, tmp_path: Path) -> None:
    source = recipe.pull({"README.md": "# Other words\n", "index.html": {"1.0.0": "1.0.0"}})
    results = run(folder_of(tmp_path, source, recipe.main, stages=["install", "upgrade"]))
    assert statuses(results) == {"install": "passed", "upgrade": "not_applicable"}
    assert reason(results, "upgrade") == f"What would be deployed does not differ from {FIRST}."
    assert results.extras.not_run == 2 and not results.extras.suggested


def test_a_config_that_changes_under_its_old_name_fails_the_upgrade(recipe: Repository, tmp_path: Path) -> None:
    source = recipe.pull({"compose.yml": {FIRST: "1.1.0+1.36.1"}, "index.html": {"1.0.0": "1.1.0"}})
    results = run(folder_of(tmp_path, source, recipe.main, stages=["install", "upgrade", "custom"]))
    assert results.verdict is Verdict.FAILED
    assert statuses(results) == {"install": "passed", "upgrade": "failed", "custom": "skipped"}
    assert "Raise INDEX_VERSION in abra.sh" in results.reason
    assert [test.name for test in results.extras.suggested] == ["test_many_requests"]
    assert results.level is None  # not all stages were asked for


def test_the_silent_rollback_of_a_version_that_never_gets_healthy(recipe: Repository, tmp_path: Path) -> None:
    changes = dict(NEXT)
    changes["compose.yml"] = {**NEXT["compose.yml"], '"http://127.0.0.1:8080/"]': '"http://127.0.0.1:1/"]'}  # type: ignore[dict-item]
    results = run(folder_of(tmp_path, recipe.pull(changes), recipe.main, stages=["install", "upgrade"]))
    assert statuses(results) == {"install": "passed", "upgrade": "failed"}
    assert "rolled app back by itself (silent rollback)" in results.reason


def test_data_that_an_upgrade_loses(recipe: Repository, tmp_path: Path) -> None:
    changes = dict(NEXT)
    changes["compose.yml"] = {
        **NEXT["compose.yml"],
        "db:/var/lib/db": "rows:/var/lib/db",
        "  db:\n\nconfigs": "  rows:\n\nconfigs",
    }  # type: ignore[dict-item]
    results = run(folder_of(tmp_path, recipe.pull(changes), recipe.main, stages=["install", "upgrade"]))
    assert statuses(results) == {"install": "passed", "upgrade": "failed"}
    assert "db:/var/lib/db was on the volume db and is now on rows, which is empty" in results.reason


def test_a_backup_whose_dump_was_cut_short(recipe: Repository, tmp_path: Path) -> None:
    recipe.edit({"hooks.sh": {'; echo "-- PostgreSQL database dump complete"': ""}, "tests/test_backup.py": ""})
    recipe.commit("Cut the dump")
    results = run(folder_of(tmp_path, recipe.pull({}), recipe.main, stages=["backup", "restore"]))
    assert statuses(results) == {"backup": "failed", "restore": "skipped"}
    assert "dump.sql" in results.reason


def test_a_restore_that_brings_nothing_back(recipe: Repository, tmp_path: Path) -> None:
    recipe.edit({"compose.yml": {'\n        backupbot.restore.post-hook: "sh /hooks load"': ""}})
    recipe.commit("Forget the hook")
    results = run(folder_of(tmp_path, recipe.pull({}), recipe.main, stages=["restore"]))
    assert statuses(results) == {"restore": "failed"}
    assert "read_marker returned the value from after the backup" in results.reason


def test_without_hooks_a_dump_is_made_and_not_proven(recipe: Repository, tmp_path: Path) -> None:
    (recipe.folder / "tests" / "cc_ci_hooks.py").unlink()
    (recipe.folder / "tests" / "test_restore.py").unlink()
    recipe.edit({"compose.yml": {'\n        - "backupbot.backup=true"': ""}})
    recipe.commit("Be simpler")
    results = run(folder_of(tmp_path, recipe.pull({}), recipe.main, stages=["install", "backup", "restore"]))
    assert statuses(results) == dict.fromkeys(["install", "backup", "restore"], "passed")
    assert [stage.proven for stage in results.stages] == [True, False, False]
    assert "made, not proven: not backed up: uploads" in reason(results, "backup")
    assert "Define `write_marker`" in reason(results, "backup")


def test_extra_tests_alone_deploy_the_commit_once(recipe: Repository, tmp_path: Path) -> None:
    results = run(folder_of(tmp_path, recipe.pull(NEXT), recipe.main, stages=["extra"]))
    assert statuses(results) == {"extra": "passed"}
    assert (results.deployments, results.upgraded_from) == (1, "")


def test_settings_that_loosen_count_from_the_base_only(recipe: Repository, tmp_path: Path) -> None:
    source = recipe.pull({**NEXT, "cc-ci.toml": '[stages]\nupgrade = "too hard"\n[app]\nstatus = [200]\n'})
    results = run(folder_of(tmp_path, source, recipe.main, stages=["install", "upgrade"], trusted=False))
    assert statuses(results) == {"install": "passed", "upgrade": "passed"}
    assert results.loosened == ["cc-ci.toml changes stages.upgrade from nothing to 'too hard': this counts once it is merged."]


def test_no_secret_stays_in_what_is_kept(recipe: Repository, tmp_path: Path) -> None:
    before = '["httpd", "-f", "-v", "-p", "8080", "-h", "/www"]'
    telling = '["sh", "-c", "cat /run/secrets/*; echo; exec httpd -f -p 8080 -h /www"]'
    recipe.edit({"compose.yml": {before: telling}})
    recipe.commit("Print the secret")
    folder = folder_of(tmp_path, recipe.pull({}), recipe.main, stages=["install"])
    engine = Engine(folder)
    results = engine.run()
    assert results.verdict is Verdict.PASSED
    assert results.secret_leaks == ["log.txt", "service-app.log"]
    assert engine._deployer
    (secret,) = engine._deployer.secrets
    assert len(secret) == 40
    kept = b"".join(path.read_bytes() for path in folder.path.rglob("*") if path.is_file())
    assert secret.encode() not in kept and b"[secret]" in kept


def test_no_router_asks_for_a_certificate(recipe: Repository, tmp_path: Path) -> None:
    specs: list[str] = []

    class Looking(Engine):
        def _teardown(self, *given):  # type: ignore[no-untyped-def]
            stack = self._deployer.context.stack  # type: ignore[union-attr]
            specs.append(docker("service", "inspect", f"{stack}_app"))
            return super()._teardown(*given)

    results = Looking(folder_of(tmp_path, recipe.pull({}), recipe.main, stages=["install"])).run()
    assert results.verdict is Verdict.PASSED
    assert "certresolver" not in specs[0] and '.tls": "true"' in specs[0]
