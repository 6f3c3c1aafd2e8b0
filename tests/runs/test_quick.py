"""Quick runs in the control plane: who gets one, that it counts for nothing, and how known-good data is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from enrollment.models import Repository
from runs import case_history, commands, ingest, known_good, manual, render, reporting, scheduling, tasks, track_record
from runs.executors.local import GRACE, LocalExecutor
from runs.harness import known_good as harness
from runs.harness.protocol import Request, Results, RunFolder
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import Report, State, TestRun
from tests.factories import CaseResultFactory, RepositoryFactory, StageResultFactory, TestRunFactory
from tests.world import World, decided

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

SHA = "ab" * 20
SECRETS = '{"ccci-0123456789ab_key_v1": "a secret of the app"}'


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    return tmp_path / "data" / harness.FOLDER


# --- asking


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("!testme --quick", ("upgrade", "custom")),
        ("!testme --QUICK abcdef1", ("upgrade", "custom")),
        ("!testme --extra-tests —quick", ("upgrade", "custom", "extra")),
    ],
)
def test_a_quick_run_has_its_own_stages(text: str, stages: tuple[str, ...]) -> None:
    command = commands.parse(text)
    assert isinstance(command, commands.Command)
    assert command.quick and command.stages == stages


@pytest.mark.parametrize("text", ["!testme --quick --stages install", "!testme --from 1.0.0+1 --quick"])
def test_a_quick_run_has_no_other_stages_or_start(text: str) -> None:
    found = commands.parse(text)
    assert isinstance(found, commands.Problem) and found.nearest == "!testme --quick"


def test_a_quick_run_sets_no_status_and_is_nothing_to_retry(world: World) -> None:
    world.say("recipes/web", "!testme --quick")
    world.hear()
    run = TestRun.objects.get()
    assert (run.quick, run.stages, run.trusted, run.state) == (True, ["upgrade", "custom"], True, State.QUEUED)
    assert not Report.objects.filter(kind=Report.Kind.STATUS).exists()
    TestRun.objects.update(state=State.FAILED)
    world.say("recipes/web", "!testme retry")
    world.hear()
    assert TestRun.objects.count() == 1
    assert "There is no run to repeat yet" in world.own_comments("recipes/web")[-1]


def test_a_status_stays_that_of_the_run_that_counts() -> None:
    full = TestRunFactory(passed=True, sha=SHA)
    full.events.create(at=timezone.now(), kind=State.QUEUED)
    reporting.enqueue_run(full)
    quick = TestRunFactory(repository=full.repository, pull_request=full.pull_request, sha=SHA, quick=True, state=State.FAILED)
    quick.events.create(at=timezone.now(), kind=State.QUEUED)
    reporting.enqueue_run(quick)
    status = decided(f"status:{full.repository_id}:{SHA}")
    assert (status.run, status.wanted["state"]) == (full, "success")


def test_strange_code_gets_no_data(world: World) -> None:
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", f"!testme --quick {pull.head_sha}", number=pull.number)
    world.hear()
    assert not TestRun.objects.exists()
    assert "are not for code that somebody outside may have written" in world.own_comments("recipes/web", pull.number)[0]


def test_a_full_run_answers_a_quick_one_but_not_the_other_way_round(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    world.say("recipes/web", "!testme --quick")
    world.hear()
    assert not TestRun.objects.get().quick, "it joined the full one"
    TestRun.objects.update(quick=True, stages=["upgrade", "custom"])
    world.say("recipes/web", "!testme --stages custom")
    world.hear()
    assert TestRun.objects.filter(quick=False, stages=["custom"], state=State.QUEUED).count() == 1


# --- counting


def test_a_quick_run_is_in_no_history() -> None:
    row = RepositoryFactory()
    for quick, status in ((False, "passed"), (True, "failed")):
        run = TestRunFactory(repository=row, sha=SHA, quick=quick, **{status: True}, details={"version": "1.0.0+1"})
        TestRun.objects.filter(pk=run.pk).update(pull_request=None, stages=["upgrade", "custom"])
        CaseResultFactory(stage=StageResultFactory(run=run, name="custom", status=status), name="test_x", status=status)
    full, quick = TestRun.objects.get(quick=False), TestRun.objects.get(quick=True)
    (history,) = case_history.of_repository(row.pk).values()
    assert not history.flaky and [verdict.run for verdict in history.verdicts] == [full.pk]
    evidence = track_record.version_evidence(row.name, "1.0.0+1")
    assert evidence and evidence["passed"]
    TestRun.objects.filter(pk=full.pk).update(started_at=full.finished_at - timedelta(seconds=5))
    full.refresh_from_db()
    assert scheduling.usual_seconds(full) == 5


# --- telling


def test_report_and_page_say_what_it_started_on(client: Client) -> None:
    before = TestRunFactory(passed=True)
    origin = {"run_id": str(before.id), "sha": "cd" * 20, "made": "2026-11-28T03:12:00Z"}
    run = TestRunFactory(passed=True, quick=True, details={"known_good": origin})
    text = render.report(run)
    assert "### ✅ The quick test of" in text and "does not count for a merge" in text
    assert f"[{before}]({before.url})" in text and "saved on 2026-11-28 03:12 UTC" in text and "cdcdcdcd" in text
    assert "To run it again: `!testme --quick`" in text
    page = client.get(run.get_absolute_url()).content.decode()
    assert "This is a quick run, which does not count for a merge." in page and before.get_absolute_url() in page
    assert "Before it is merged, test it in full" in page and "Nothing: all tests passed" not in page
    assert "!testme --quick" in page and "!testme retry" not in page
    run.details = {"version": "1.0.0+1", "known_good": None}  # it had none to start on
    assert "started on" not in render.report(run) and "starts on" not in render.report(run)


# --- keeping


def full(row: Repository | None = None, **fields: Any) -> TestRun:
    """A full run of the default branch, under way on this machine, whose harness has saved its data."""
    fields = {
        "pull_request": None,
        "ref": "refs/heads/main",
        "trusted": True,
        "sha": SHA,
        "stages": list(DEFAULT_STAGES),
        **fields,
    }
    row = row or RepositoryFactory(default_branch="main")
    run: TestRun = TestRunFactory(running=True, repository=row, **fields)
    made = run.folder / harness.FOLDER
    made.mkdir(parents=True)
    (made / "00.tar").write_bytes(f"data of {run}".encode())
    (made / harness.SECRETS).write_text(SECRETS)
    text = {"run_id": str(run.id), "sha": SHA, "made": timezone.now().isoformat()}
    (made / harness.FILE).write_text(json.dumps({**text, "stack": "ccci-0", "domain": "x", "volumes": []}))
    return run


def end(run: TestRun, **changes: Any) -> None:
    now = timezone.now().isoformat()
    fields = {"verdict": "passed", "run_id": str(run.id), "sha": run.sha, "started": now, "finished": now, **changes}
    assert ingest.conclude(run, Results.model_validate(fields))


def start_of(row: Repository) -> Path | None:
    folder, _ = known_good.start_of(row.pk)
    return Path(folder) if folder else None


def test_a_passed_runs_data_is_adopted_with_its_secrets_encrypted(data: Path) -> None:
    run = full()
    end(run)
    folder, credential = known_good.start_of(run.repository_id)
    assert credential == {"known_good": SECRETS}
    assert sorted(path.name for path in Path(folder).iterdir()) == ["00.tar", harness.FILE, known_good.SEALED]
    assert Path(folder).is_relative_to(data) and "a secret of the app" not in (Path(folder) / known_good.SEALED).read_text()
    assert not (run.folder / harness.FOLDER).exists()
    for sealed in (b"written with a key that is gone", b"\xff"):
        (Path(folder) / known_good.SEALED).write_bytes(sealed)
        assert known_good.start_of(run.repository_id) == ("", {})


@pytest.mark.parametrize(
    ("fields", "results"),
    [
        ({}, {"verdict": "failed"}),
        ({}, {"verdict": "errored"}),
        ({}, {"teardown": {"clean": False, "left": ["a volume"]}}),
        ({}, {"sha": "cd" * 20}),
        ({"trusted": False}, {}),
        ({"ref": "refs/heads/other"}, {}),
        ({"ref": "refs/tags/1.0.0+1"}, {}),
        ({"stages": ["install", "custom"]}, {}),
        ({"quick": True}, {}),
        ({"upgrade_from": "1.0.0+1"}, {}),
        ({"executor_name": "drone"}, {}),
    ],
)
def test_nothing_else_moves_the_known_good_state(fields: dict[str, Any], results: dict[str, Any]) -> None:
    row = RepositoryFactory(default_branch="main")
    end(full(row))
    before = start_of(row)
    run = full(row, **fields)
    end(run, **results)
    assert start_of(row) == before and not (run.folder / harness.FOLDER).exists()


def test_neither_does_a_pull_request_or_a_repeated_run() -> None:
    row = RepositoryFactory(default_branch="main")
    first = full(row)
    end(first)
    before = start_of(row)
    pull = TestRunFactory(passed=True, repository=row).pull_request
    for more in ({"pull_request": pull}, {"retry_of": first}):
        end(full(row, **more))
        assert start_of(row) == before


def test_the_newest_stays_also_if_it_ends_first_and_a_renamed_repository_keeps_its_own() -> None:
    row = RepositoryFactory(default_branch="main")
    older = full(row, created_at=timezone.now() - timedelta(hours=2))
    newer = full(row, created_at=timezone.now() - timedelta(hours=1))
    end(newer)
    before = start_of(row)
    end(older)
    Repository.objects.filter(pk=row.pk).update(name="../../renamed", owner="others")
    assert start_of(row) == before and before is not None and newer.id.hex in before.name
    assert [folder.name for folder in before.parent.iterdir()] == [before.name]
    last = full(row)
    end(last)
    assert start_of(row) not in (None, before) and not before.exists(), "the one before is deleted"


def test_of_two_that_are_adopted_at_once_the_newer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    row = RepositoryFactory(default_branch="main")
    older, newer = (full(row, created_at=timezone.now() - timedelta(hours=hours)) for hours in (2, 1))
    everything = known_good._all

    def meanwhile(repository_id: int) -> list[Path]:
        found = everything(repository_id)
        monkeypatch.setattr(known_good, "_all", everything)
        end(newer)
        return found

    monkeypatch.setattr(known_good, "_all", meanwhile)
    end(older)
    found = start_of(row)
    assert found and newer.id.hex in found.name


def test_data_in_use_is_deleted_later() -> None:
    row = RepositoryFactory(default_branch="main")
    end(full(row))
    before = start_of(row)
    assert before
    taken = harness.take(str(before), 1, lambda: None)
    end(full(row))
    assert (before / "00.tar").exists() and start_of(row) != before
    taken.release()
    end(full(row))
    assert not before.exists()
    with pytest.raises(harness.Unusable, match="no longer there"):
        harness.take(str(before), 1, lambda: None)


def test_whoever_dies_while_adopting_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    row = RepositoryFactory(default_branch="main")
    end(full(row))
    before = start_of(row)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for what in (known_good, "encrypt"), (Path, "rename"):
        run = full(row)
        with monkeypatch.context() as patch:
            patch.setattr(*what, die)
            with pytest.raises(Killed):
                end(run)
        run.refresh_from_db()
        assert run.state == State.PASSED and start_of(row) == before
    run = full(row)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "delete", die)
        with pytest.raises(Killed):
            end(run)
    found = start_of(row)
    assert found and run.id.hex in found.name, "it was adopted, and the old one is deleted with the next"


def test_data_of_repositories_that_nobody_watches_is_deleted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [RepositoryFactory(default_branch="main") for _ in range(2)]
    for row in rows:
        end(full(row))
    (data / "not-a-number").write_text("")
    Repository.objects.filter(pk=rows[0].pk).update(active=False)
    known_good.forget()
    assert [start_of(row) is not None for row in rows] == [False, True] and not (data / str(rows[0].pk)).exists()
    monkeypatch.setattr(settings.CC_CI, "known_good_mb", 0)
    known_good.forget()
    assert not (data / str(rows[1].pk)).exists()


def test_what_a_killed_run_saved_is_deleted() -> None:
    runs = [full() for _ in range(3)]
    for run in runs[:2]:
        RunFolder(run.folder).begun.touch()
    RunFolder(runs[1].folder).results_file.touch()  # finished: it may still be adopted
    known_good.forget()
    assert [(run.folder / harness.FOLDER).exists() for run in runs] == [False, True, True]


def test_what_nobody_adopted_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its secrets are readable: of whoever was killed after the verdict, and of a machine that came back after its run's end."""
    monkeypatch.setattr(known_good, "adopt", lambda *_: None)
    _just_now, long_ago, elsewhere = runs = [full() for _ in range(3)]
    for run in runs:
        end(run)
        RunFolder(run.folder).results_file.touch()
    left = [run.folder / harness.FOLDER for run in runs]
    TestRun.objects.filter(pk=long_ago.pk).update(finished_at=timezone.now() - timedelta(days=1))
    TestRun.objects.filter(pk=elsewhere.pk).update(attempt=elsewhere.attempt + 1)
    known_good.forget()
    assert [folder.exists() for folder in left] == [True, False, False]


def test_a_repeated_runs_data_is_not_adopted_either_when_the_first_run_is_old() -> None:
    row = RepositoryFactory(default_branch="main")
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days + 1)
    first = TestRunFactory(passed=True, repository=row, created_at=long_ago, finished_at=long_ago)
    TestRun.objects.filter(pk=first.pk).update(pull_request=None)
    run = full(row, retry_of=first)
    tasks.drop_old_runs()
    end(TestRun.objects.get(pk=run.pk))
    assert start_of(row) is None
    assert tasks.drop_old_runs() == "1 deleted"


def test_whoever_takes_a_repositorys_name_is_not_run_in_its_place(world: World) -> None:
    row = Repository.objects.get()
    head = world.client().branch_head("recipes", "web", "main")
    world.remote.rename_repo("recipes/web", "site")
    world.remote.add_repo("recipes", "web", files={"evil.txt": "x"})
    assert manual.run_repository(row, "admin").sha == head
    assert row.name == "site"


def test_waiting_for_another_quick_run_costs_a_run_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("run_seconds", 7200), ("pull_seconds", 60), ("start_seconds", 60)):
        monkeypatch.setattr(settings.CC_CI, name, seconds)
    for quick, longest in ((True, 14400), (False, 7440)):
        run = TestRunFactory(running=True, quick=quick)
        run.folder.mkdir(parents=True)
        RunFolder(run.folder).apart_file.write_text("7200")
        assert LocalExecutor().longest(run) == timedelta(seconds=longest) + GRACE


def test_the_harness_of_this_machine_gets_the_data_and_no_file_has_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def start(*_: object, **more: Any) -> subprocess.CompletedProcess[str]:
        given.append(more["input"])
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", start)
    row = RepositoryFactory(default_branch="main")

    def request(run: TestRun) -> Request:
        LocalExecutor().start(run)
        return RunFolder(run.folder).request()

    quick = TestRunFactory(running=True, repository=row, trusted=True, quick=True)
    assert request(quick).quick == "", "there is none yet"
    made = full(row)
    assert (request(made).known_good_mb, request(made).quick) == (settings.CC_CI.known_good_mb, None)
    end(made)
    shutil.rmtree(quick.folder)
    asked = request(quick)
    assert (asked.quick, asked.known_good_mb) == (str(start_of(row)), 0)
    assert json.loads(given[-1])["known_good"] == SECRETS
    assert "a secret of the app" not in RunFolder(quick.folder).request_file.read_text()
