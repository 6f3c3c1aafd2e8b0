"""Help by subject, the version, a database that cannot be used. Exit codes: 0 done, 1 no, 2 our fault, 64 misuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from controlplane import cli, database
from controlplane.cli import DJANGOS, DONE, MISUSE, NO, OURS, SUBJECTS, Exit, execute
from controlplane.config import BASE_DIR

pytestmark = pytest.mark.slow(0.2)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> type[BaseCommand]:
    """`cc-ci check` is another command for this test; `handle` is for the test to set."""

    class Command(BaseCommand):
        requires_system_checks = ()

    monkeypatch.setattr("django.core.management.commands.check.Command", Command)
    return Command


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (None, DONE),
        (Exit(NO), NO),
        (Exit(OURS), OURS),
        (Exit(), DONE),
        (CommandError("no such thing"), MISUSE),
        (RuntimeError("broken"), OURS),
        (KeyboardInterrupt(), 130),
        (SystemExit("words"), MISUSE),
    ],
)
def test_exit_codes(command: type[BaseCommand], raised: BaseException | None, code: int) -> None:
    def handle(*args: object, **options: object) -> None:
        if raised:
            raise raised

    command.handle = handle  # type: ignore[method-assign, assignment]
    assert execute(["cc-ci", "check"]) == code


@pytest.mark.parametrize("words", [["no-such-command"], ["check", "--no-such-option"], ["schedules", "--run", "nothing"]])
@pytest.mark.django_db
def test_misuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["cc-ci", *words]) == MISUSE


def test_help_shows_our_commands_by_subject(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [name for names in SUBJECTS.values() for name in names]
    assert sorted(shown) == sorted([*cli.commands(), *DJANGOS])
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert execute(["cc-ci", *words]) == DONE
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line in SUBJECTS] == list(SUBJECTS)
        assert [line.split()[0].replace("-", "_") for line in lines if line.startswith("  ")] == shown
        assert max(len(line) for line in lines) <= 110


@pytest.mark.parametrize("name", cli.commands())
def test_the_line_of_a_command_begins_its_help(name: str) -> None:
    [line] = [line for line in cli.overview().splitlines() if line.startswith(f"  {name.replace('_', '-')} ")]
    app = get_commands()[name]
    assert isinstance(app, str)
    assert load_command_class(app, name).help.startswith(line.split(maxsplit=1)[1].rstrip("."))


@pytest.mark.parametrize(("old", "new"), cli.RENAMED.items())
def test_the_earlier_name_of_a_command_goes_on_working(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert old not in cli.commands() and new in cli.commands()
    assert execute(["cc-ci", old, "--help"]) == DONE
    assert f"cc-ci {new}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version"], ["version"], ["run", "--version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    declared = tomllib.loads((BASE_DIR / "pyproject.toml").read_text())["project"]["version"]
    assert execute(["cc-ci", *words]) == DONE
    assert capsys.readouterr().out == f"cc-ci {declared}\n"


def test_help_of_a_command_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["new-tests", "--help"], ["help", "new-tests"]):
        assert execute(["cc-ci", *words]) == DONE
        assert capsys.readouterr().out.startswith("usage: cc-ci new_tests [-h] [PATH]\n\nWrite a first test file")


def test_an_error_is_told_in_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["cc-ci", "run", "nowhere"]) == MISUSE
    assert capsys.readouterr().err == "There is no folder nowhere.\n"


def test_manage_reaches_commands_of_django(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["cc-ci", "manage", "help"]) == DONE
    assert "sqlmigrate" in capsys.readouterr().out
    assert execute(["cc-ci", "manage", "diffsettings"]) == DONE
    assert "INSTALLED_APPS" in capsys.readouterr().out


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *words], cwd=BASE_DIR, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.parametrize("words", [["check"], ["work"], ["doctor"], ["help", "run"]])
def test_a_wrong_setting_stops_every_command_without_a_traceback(words: list[str]) -> None:
    done = run(*words, CC_CI_SLOTS="none", DJANGO_SETTINGS_MODULE="controlplane.settings")
    assert done.returncode == MISUSE
    assert "CC_CI_SLOTS: must be a whole number, but is 'none'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_real_one_that_goes_well() -> None:
    assert run("check", DJANGO_SETTINGS_MODULE="controlplane.settings").returncode == DONE


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} manage.py configuration | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "# Configuration\n", "")


@pytest.mark.parametrize("words", [["list"], ["infra", "status"], ["deferred", "list"], ["rotate-keys"]])
def test_a_database_without_tables(words: list[str], tmp_path: Path) -> None:
    done = run(*words, DATABASE_URL=f"sqlite:///{tmp_path}/none.sqlite3", DJANGO_SETTINGS_MODULE="controlplane.settings")
    assert (done.returncode, done.stderr) == (MISUSE, "The database has no tables yet. Run: cc-ci migrate\n")


def test_a_database_with_migrations_missing(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/half.sqlite3", "DJANGO_SETTINGS_MODULE": "controlplane.settings"}
    assert run("migrate", "auth", **environment).returncode == DONE
    done = run("list", **environment)
    assert (done.returncode, done.stdout) == (MISUSE, "")
    assert re.fullmatch(r"\d+ migrations have not been applied to the database\. Run: cc-ci migrate\n", done.stderr)


@pytest.mark.django_db
def test_a_database_of_the_migrations_before_they_were_one_file_for_each_app() -> None:
    recorder = MigrationRecorder(connection)
    for app in ("controlplane", "enrollment", "infra", "runs"):
        recorder.record_unapplied(app, "0001_tables")
        for name in import_module(f"{app}.migrations.0001_tables").Migration.replaces:
            recorder.record_applied(*name)
    assert database.missing() == ""
    call_command("migrate", verbosity=0)
    recorder.record_unapplied("runs", "0001_tables")
    recorder.record_unapplied("runs", "0020_whole_log")
    assert database.missing() == database.BETWEEN
    with pytest.raises(CommandError, match="type cc-ci migrate there"):
        call_command("migrate", verbosity=0)


@pytest.mark.parametrize("url", ["postgresql://ccci:hunter2@127.0.0.1:1/ccci", "sqlite:////nowhere/at/all.sqlite3"])
def test_a_database_that_cannot_be_reached(url: str) -> None:
    done = run("list", DATABASE_URL=url, DJANGO_SETTINGS_MODULE="controlplane.settings")
    assert (done.returncode, done.stdout) == (OURS, "")
    assert done.stderr.startswith("The database cannot be reached: ")
    assert done.stderr.endswith("\nRun: cc-ci doctor\n")
    assert "hunter2" not in done.stderr and "Traceback" not in done.stderr


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "static").touch()
    for folder, reason in (("/dev/null/data", "/dev/null/data: Not a directory"), (tmp_path, f"{tmp_path}/static: File exists")):
        done = run("list", CC_CI_DATA_DIR=str(folder), DJANGO_SETTINGS_MODULE="controlplane.settings")
        assert done.returncode == MISUSE
        assert f"CC_CI_DATA_DIR: cannot create {reason}" in done.stderr and "Traceback" not in done.stderr
