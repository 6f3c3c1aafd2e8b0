"""`cc-ci forge`, `enroll`, `unenroll`, `list` and `poll`: what they say, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from controlplane.cli import DONE, MISUSE, NO, OURS, execute
from enrollment.fakeforge.faults import Fault
from enrollment.models import Comment, Forge, Repository
from tests.world import World

pytestmark = pytest.mark.django_db


class Shell:
    """Commands as they are typed; each gives its exit code, and what it printed is kept."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = self.everything = ""

    def __call__(self, *words: str) -> int:
        code = execute(["cc-ci", *words])
        self.out, self.err = self.capsys.readouterr()
        self.everything += self.out + self.err
        assert "Traceback" not in self.err
        return code


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A forge that cc-ci does not know yet."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path)
    world.add_recipe("web")
    monkeypatch.setenv("TOKEN", world.token)
    yield world
    world.remote.faults = None
    world.close()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    # A command closes the connections at its end, and with them the test's transaction.
    monkeypatch.setattr("django.core.management.base.connections.close_all", lambda: None)
    shell = Shell(capsys)
    yield shell
    assert world.token not in shell.everything


@pytest.fixture
def known(world: World, shell: Shell) -> World:
    """The forge is added, and nothing enrolled."""
    assert shell("forge", "add", "--url", world.server.url, "--token-env", "TOKEN", "--name", "sandbox") == DONE
    world.forge = Forge.objects.get()
    return world


def test_from_nothing_to_the_first_comment(world: World, shell: Shell) -> None:
    assert shell("forge", "add", "--url", world.server.url, "--token-env", "TOKEN") == DONE
    assert "Added 127.0.0.1:" in shell.out
    assert "cc-ci is cc-ci there" in shell.out
    assert "Next: cc-ci enroll OWNER/REPO" in shell.out
    assert shell("enroll", "recipes/web") == DONE
    assert shell.out == "recipes/web is now watched. A maintainer can now comment there: !testme\n"
    world.say("recipes/web")
    assert shell("poll", "--once") == DONE
    assert "1 new comments" in shell.out
    assert Comment.objects.count() == 1
    assert shell("list") == DONE
    assert shell.out == f"recipes/web\t{world.server.url}\thand\n"
    assert shell("unenroll", "recipes/web") == DONE
    assert shell.out == "recipes/web is no longer watched.\n"
    assert shell("list") == DONE
    assert "No repositories are watched yet" in shell.out


# --- forge


def test_forge_add_again_gives_a_new_token(known: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", known.remote.add_token(known.bot))
    address = known.server.url + "/api/v1/"
    assert shell("forge", "add", "--url", address, "--token-env", "TOKEN", "--name", "sandbox", "--owner", "recipes") == DONE
    assert "Updated sandbox" in shell.out
    forge = Forge.objects.get()
    assert forge.reveal_token() != known.token
    assert forge.watched_owners == ["recipes"]


@pytest.mark.parametrize(
    ("url", "value", "code", "words"),
    [
        ("", "", MISUSE, "The environment variable TOKEN is empty or not set"),
        ("", " \n", MISUSE, "read -rs TOKEN && export TOKEN"),
        ("", "wrong", MISUSE, "Nothing was changed"),
        ("", "two\nlines", MISUSE, "the token contains a space"),
        ("", "geheim\N{EN DASH}1", MISUSE, "the token contains a space"),
        ("git.example.org", "abc", MISUSE, "expected the forge"),
        ("http://127.0.0.1:9", "abc", OURS, "No forge answers at http://127.0.0.1:9; is the address right?"),
        ("https://", "abc", MISUSE, "expected the forge"),
    ],
)
def test_forge_add_with_something_wrong(
    world: World, shell: Shell, monkeypatch: pytest.MonkeyPatch, url: str, value: str, code: int, words: str
) -> None:
    monkeypatch.setenv("TOKEN", value)
    assert shell("forge", "add", "--url", url or world.server.url, "--token-env", "TOKEN") == code
    assert words in shell.err
    assert not value.strip() or value.strip() not in shell.err.replace("with `cc-ci", "")
    assert not Forge.objects.exists()


def test_forge_add_where_something_else_answers(world: World, shell: Shell) -> None:
    world.remote.faults = lambda request: Fault(body="<html>Welcome to nginx!</html>")
    assert shell("forge", "add", "--url", world.server.url, "--token-env", "TOKEN") == OURS
    assert f"No forge answers at {world.server.url}; is the address right?" in shell.err


def test_forge_add_without_a_variable_that_is_set(world: World, shell: Shell) -> None:
    assert shell("forge", "add", "--url", world.server.url, "--token-env", "NO_SUCH") == MISUSE
    assert "NO_SUCH" in shell.err


def test_forge_add_under_a_name_that_is_taken(known: World, shell: Shell) -> None:
    url = known.server.url.replace("127.0.0.1", "localhost")
    assert shell("forge", "add", "--url", url, "--token-env", "TOKEN", "--name", "sandbox") == MISUSE
    assert f"The name sandbox is already taken by {known.server.url}" in shell.err
    assert Forge.objects.count() == 1


@pytest.mark.parametrize(
    "words",
    [["forge"], ["forge", "remove"], ["forge", "add"], ["forge", "add", "--url", "https://x"], ["forge", "add", "--token", "x"]],
)
def test_forge_misuse(shell: Shell, words: list[str]) -> None:
    assert shell(*words) == MISUSE
    assert shell.err


def test_forge_list(known: World, shell: Shell) -> None:
    assert shell("forge", "list") == DONE
    assert shell.out == f"sandbox\t{known.server.url}\tas cc-ci\tnot polled yet\n"
    shell("enroll", "recipes/web")
    shell("poll", "--once")
    shell("forge", "list")
    assert shell.out.endswith("\thealthy\n")
    Forge.objects.update(last_error="401 unknown token")
    shell("forge", "list")
    assert shell.out.endswith("\t401 unknown token\n")


def test_forge_list_of_none(shell: Shell) -> None:
    assert shell("forge", "list") == DONE
    assert "cc-ci forge add --url" in shell.out


# --- enroll, unenroll


def test_enroll_several_and_again(known: World, shell: Shell) -> None:
    known.add_recipe("app")
    assert shell("enroll", "recipes/web", "recipes/app.git") == DONE
    assert shell.out.count("is now watched") == 2
    assert shell("enroll", "Recipes/WEB", "--forge", known.server.url + "/") == DONE
    assert "recipes/web is already watched" in shell.out
    assert shell("enroll", "recipes/web", "--forge", "sandbox") == DONE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes/none"], "recipes/none was not found at"),
        (["web"], "Invalid repository 'web': expected OWNER/REPO"),
        (["a/b/c"], "expected OWNER/REPO"),
        (["/web"], "expected OWNER/REPO"),
        (
            ["recipes/web", "--forge", "https://other.example.org"],
            "There is no forge 'https://other.example.org'. Known forges:",
        ),
        ([], "OWNER/REPO"),
    ],
)
def test_enroll_with_something_wrong(known: World, shell: Shell, words: list[str], message: str) -> None:
    assert shell("enroll", *words) == MISUSE
    assert message in shell.err
    assert not Repository.objects.exists()


@pytest.mark.parametrize("command", ["enroll", "unenroll"])
def test_without_a_forge_and_with_two(world: World, shell: Shell, command: str) -> None:
    assert shell(command, "recipes/web") == MISUSE
    assert "cc-ci forge add --url" in shell.err
    for name in ("one", "two"):
        Forge.objects.create(name=name, url=f"https://{name}.example.org")
    assert shell(command, "recipes/web") == MISUSE
    assert "add --forge with one of: https://one.example.org, https://two.example.org" in shell.err


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=401), Fault(status=429), Fault(body="<html>")])
def test_enroll_while_the_forge_fails(known: World, shell: Shell, fault: Fault) -> None:
    known.remote.faults = lambda request: fault
    assert shell("enroll", "recipes/web") == OURS
    assert shell.err.strip()
    assert not Repository.objects.exists()


def test_enroll_without_the_key(known: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    assert shell("enroll", "recipes/web") == OURS
    assert "CC_CI_SECRET_KEYS" in shell.err


def test_unenroll_what_is_not_enrolled(known: World, shell: Shell) -> None:
    shell("enroll", "recipes/web")
    assert shell("unenroll", "recipes/wen") == MISUSE
    assert "recipes/wen is not enrolled. Did you mean recipes/web?" in shell.err
    assert shell("unenroll", "web") == MISUSE
    assert shell("unenroll", "RECIPES/web", "--forge", "sandbox") == DONE
    assert not Repository.objects.get().active


# --- list, poll


def test_list_for_machines(known: World, shell: Shell) -> None:
    assert shell("list", "--json") == DONE
    assert json.loads(shell.out) == []
    shell("enroll", "recipes/web")
    Repository.objects.update(last_error="404")
    assert shell("list", "--json") == DONE
    (fact,) = json.loads(shell.out)
    assert fact.pop("enrolled_at").endswith("+00:00")
    assert fact == {
        "repository": "recipes/web",
        "forge": known.server.url,
        "watched": True,
        "source": "hand",
        "private": False,
        "error": "404",
    }


def test_list_all_shows_those_that_were_let_go(known: World, shell: Shell) -> None:
    shell("enroll", "recipes/web")
    shell("unenroll", "recipes/web")
    shell("list", "--json")
    assert json.loads(shell.out) == []
    assert shell("list", "--all") == DONE
    assert shell.out.endswith("hand\t(not watched)\n")


def test_poll_tells_of_trouble(known: World, shell: Shell) -> None:
    shell("enroll", "recipes/web")
    known.remote.faults = lambda request: Fault(status=500)
    assert shell("poll", "--once") == NO
    assert "sandbox: 0 changed, 0 new comments, 1 problems" in shell.out
    assert "500" in shell.err
    known.remote.faults = None
    assert shell("poll", "--once") == DONE
    assert "waits until" in shell.out
    assert shell("poll", "--once", "--now", "--json") == DONE
    (look,) = json.loads(shell.out)
    assert (look["forge"], look["skipped"], look["problems"]) == ("sandbox", "", [])


def test_poll_with_nothing_to_look_at(world: World, shell: Shell) -> None:
    assert shell("poll", "--once") == MISUSE
    assert "cc-ci forge add" in shell.err
    assert shell("poll") == MISUSE
    assert "--once" in shell.err


def test_poll_with_nothing_enrolled(known: World, shell: Shell) -> None:
    assert shell("poll", "--once") == DONE
    assert "nothing enrolled" in shell.out


def test_no_command_takes_the_token_itself(shell: Shell) -> None:
    for words in (["forge", "add", "--help"], ["enroll", "--help"]):
        assert shell(*words) == DONE
        assert "--token " not in shell.out


def test_what_the_shell_sees_is_what_a_person_sees(known: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is a 2, and not a wrong word of the person's."""

    def broken(*args: Any) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr("enrollment.management.commands.enroll.enroll", broken)
    code = execute(["cc-ci", "enroll", "recipes/web"])
    assert code == OURS
    assert "a fault of our own" in shell.capsys.readouterr().err
