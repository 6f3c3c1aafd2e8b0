"""Exit codes: 0 done, 1 no, 2 our fault, 64 misuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import DONE, MISUSE, NO, OURS, Exit, execute
from controlplane.config import BASE_DIR


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


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *words], cwd=BASE_DIR, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.parametrize("words", [["check"], ["work"], ["doctor"], ["help"]])
def test_a_wrong_setting_stops_every_command_without_a_traceback(words: list[str]) -> None:
    done = run(*words, CC_CI_SLOTS="none", DJANGO_SETTINGS_MODULE="controlplane.settings")
    assert done.returncode == MISUSE
    assert "CC_CI_SLOTS: Input should be a valid integer" in done.stderr
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
