"""The adapter for abra, without abra: its parsers, the pseudo-terminal, and what it takes from the deployer swarm.

The real tool cannot be had here. `FAKE` is no recording of it: it writes what it is told to, to prove the plumbing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.deployers import abra
from infra.deployers.abra import AbraDeployer
from infra.deployers.base import Context, DeployError
from infra.deployers.choose import choose
from infra.deployers.docker_cli import ids
from tests.docker import need_swarm
from tests.infra.deployers.conftest import RECIPES

Make = Callable[..., Any]

FAKE = """#!/bin/sh
# Not abra: says what the test wants to hear.
case "$*" in
  terminal) test -t 0 && test -t 1 && test -t 2 && echo "a terminal, $LC_ALL, $ABRA_DIR, ${SECRET:-no secret}"; stty size ;;
  streams) echo out; echo err >&2 ;;
  fatal) printf '\\033[1;31mFATA\\033[0m <app.go:42> no such app: \\033[1mx\\033[0m.\\n'; exit 0 ;;
  failing) echo "WARN nothing to see"; exit 1 ;;
  asking) printf 'Are you sure? '; read answer; echo "$answer" ;;
  long) i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done ;;
  *) echo "FATA unknown command: $*" ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbraDeployer:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "abra").write_text(FAKE)
    (tmp_path / "bin" / "abra").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SECRET", "of the server")
    return AbraDeployer(Context("ab" * 16, "test", "x", RECIPES / "web", tmp_path, domain="abab.ci.example.com"))


def test_it_runs_on_a_wide_terminal_with_a_folder_of_its_own(fake: AbraDeployer) -> None:
    said = fake.abra("terminal")
    assert said == f"a terminal, C, {fake.context.work}/abra, no secret\n200 400\n"


def test_both_streams_are_read_and_exit_codes_are_not_believed(fake: AbraDeployer) -> None:
    assert sorted(fake.abra("streams").split()) == ["err", "out"]
    assert "nothing to see" in fake.abra("failing")
    assert fake.abra("long").splitlines()[-1] == "line 19999"


def test_a_fatal_line_is_an_error_that_says_what_to_do(fake: AbraDeployer) -> None:
    with pytest.raises(DeployError, match=r"^abra fatal: no such app: x\. Run the same command by hand") as caught:
        fake.abra("fatal")
    assert caught.value.kind == "tool_failed"
    assert not caught.value.recipes_fault


def test_a_question_that_nobody_answers_meets_the_time_limit(fake: AbraDeployer) -> None:
    started = time.monotonic()
    with pytest.raises(DeployError, match=r"abra asking did not end within 0\.5 s; its last words: Are you sure\?"):
        fake.abra("asking", seconds=0.5)
    assert time.monotonic() - started < 5


def test_a_cancelled_run_ends_it(fake: AbraDeployer) -> None:
    def check() -> None:
        raise InterruptedError

    fake.context.check = check
    with pytest.raises(InterruptedError):
        fake.abra("asking")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all is well\n", ""),
        ("INFO x\nFATA something is wrong\n", "something is wrong"),
        ("FATA[0003] something is wrong.", "something is wrong"),
        ("FATA <deploy.go:12> first\nFATA second", "first"),
        ("this is no FATA line", ""),
    ],
)
def test_fatal_lines(text: str, expected: str) -> None:
    assert abra.fatal(text) == expected


def test_machine_output_is_found_behind_other_lines() -> None:
    ps = 'WARN a word before\n{"app": {"service": "app", "state": "running", "chaos": "true"}, "db": {"state": "unknown"}}\n'
    assert abra.rows(ps) == [
        {"service": "app", "state": "running", "chaos": "true"},
        {"service": "db", "state": "unknown"},
    ]
    assert abra.rows('[{"name": "key", "value": "s3"}]') == [{"name": "key", "value": "s3"}]
    for nothing in ("", "no json", "{broken", "3", '["x"]', '{"a": "b"}'):
        assert abra.rows(nothing) == []


def test_the_table_of_lint() -> None:
    table = """
┌──────┬──────────────────────┬──────────┬───────────┬─────────┬─────────────────────────┐
│ REF  │ RULE                 │ SEVERITY │ SATISFIED │ SKIPPED │ RESOLVE                 │
├──────┼──────────────────────┼──────────┼───────────┼─────────┼─────────────────────────┤
│ R001 │ compose config has   │ warn     │ ✅        │ -       │ ensure it has a version │
│      │ a version            │          │           │         │ in it                   │
│ R014 │ only annotated tags  │ error    │ ❌        │ -       │ replace lightweight     │
└──────┴──────────────────────┴──────────┴───────────┴─────────┴─────────────────────────┘
"""
    first, second = abra.lint_table(table)
    assert first["rule"] == "compose config has a version"
    assert first["resolve"] == "ensure it has a version in it"
    assert (second["ref"], second["severity"], second["satisfied"], second["skipped"]) == ("R014", "error", "❌", "-")
    assert abra.lint_table(table.replace("┃", "|").replace("│", "|")) == [first, second]
    assert abra.lint_table("│ a │ b │ c │ d │ e │ f │\n│ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │") == []
    assert abra.lint_table("no table") == []


def test_the_apps_env_keeps_the_samples_comments() -> None:
    sample = "TYPE=x\n#DOMAIN=commented\nDOMAIN=x.example.com\nSECRET_KEY_VERSION=v1 # length=40\nexport MAIL=a\n"
    assert abra.env_file(sample, {"DOMAIN": "run.ci.example.com", "MAIL": 'a "b" c', "NEW": ""}) == (
        "TYPE=x\n#DOMAIN=commented\nDOMAIN=run.ci.example.com\nSECRET_KEY_VERSION=v1 # length=40\n"
        'export MAIL="a \\"b\\" c"\nNEW=\n'
    )


def test_it_is_chosen_by_name_only_and_missed_in_words(deployer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = deployer("process-web").context
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeployError, match="There is no abra command here") as caught:
        choose("abra", context)
    assert caught.value.kind == "tool_missing"
    assert "Install abra" in caught.value.fix
    with pytest.raises(DeployError, match="There is no abra command here"):
        AbraDeployer(context).abra("app", "ls")


class ByHand(AbraDeployer):
    """Where abra would deploy, docker does: to see what is done with a stack that has none of our labels."""

    def abra(self, *arguments: str, seconds: float = 0) -> str:
        if arguments[:2] == ("app", "deploy"):
            place = self.folder / "recipes" / self.context.recipe
            assert (place / ".git").is_dir()
            assert f"DOMAIN={self.context.domain}\n" in (self.folder / "servers/default" / f"{arguments[2]}.env").read_text()
            command = ["docker", "stack", "deploy", "--resolve-image=never", "-c", str(place / "compose.yml"), self.stack]
            env = {**os.environ, "STACK_NAME": self.stack, "DOMAIN": self.context.domain}
            subprocess.run(command, env=env, check=True, capture_output=True, timeout=30)
        return ""


@pytest.mark.docker
def test_a_stack_without_our_labels_is_known_by_its_name(deployer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need_swarm()
    monkeypatch.setattr(abra, "problem", lambda: "")
    app = deployer("backup-app", ByHand)
    other = deployer("no-web-port")
    other.deploy()
    app.deploy()
    state = app.settle()
    assert state.settled and state.web and state.fingerprint
    assert {service.name for service in state.services} == {"app", "db", "worker"}
    app.write("app", "/data/kept", b"1")
    app.write("db", "/var/lib/db/rows", b"1 one\n")
    backup = app.backup(tmp_path / "backup")
    app.write("app", "/data/kept", b"2")
    app.restore(backup)
    assert app.read("app", "/data/kept") == b"1"
    assert any("service app create" in line for line in app.events())
    app.undeploy()
    assert not app.owned.ids("container") and not app.owned.ids("network")
    assert len(app.owned.ids("volume")) == 4
    assert app.teardown() == []
    assert not app.owned.ids("volume")
    assert not app.folder.exists()
    assert other.owned.ids("service")
    assert ids("service", *other.owned.labels)
