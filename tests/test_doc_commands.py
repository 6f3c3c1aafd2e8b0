"""What the docs tell people to type: it is shell, its commands take it, and it is run here or by the test that is named."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import get_commands, load_command_class
from django.db import connection
from django.utils import timezone

from controlplane.cli import DONE, MISUSE, RENAMED, commands, execute
from enrollment.models import Forge, Repository
from runs.models import RemoteExecutor, TestRun
from tests.factories import TestRunFactory
from tests.runs.executors.conftest import FAKES
from tests.test_docs import DOCS, ROOT
from tests.world import World

BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`cc-ci ([a-z][^`\n]*)`")
#: Programs that the docs may use. For a new one, think of who has it.
PROGRAMS = {"apt-get", "cc-ci", "cd", "curl", "docker", "export", "git", "ln", "make", "pipx", "read", "systemctl"}
WITH_VENV = re.compile(r"\.venv/bin/(python|ruff)")
SETTING = re.compile(r"[A-Z][A-Z0-9_]*=")

#: Commands of the docs that are run elsewhere, by their first words: the test, and what it contains.
ELSEWHERE = {
    "run": ("tests/e2e/test_run_command.py", '"run"'),
    "test": ("tests/runs/test_test_command.py", '"test"'),
    "new-tests": ("tests/runs/test_test_command.py", "new_tests"),
    "work": ("tests/controlplane/trees.py", '"work"'),
    "firewall": ("tests/e2e/test_firewall.py", '"firewall"'),
    "rotate_keys": ("tests/controlplane/test_secrets.py", '"rotate_keys"'),
    "infra apply": ("tests/infra/test_infra_command.py", '"apply"'),
    "infra check": ("tests/infra/test_infra_command.py", '"check"'),
    "infra diff": ("tests/infra/test_infra_command.py", '"diff"'),
    "infra nightly": ("tests/infra/test_infra_upgrade_command.py", '"nightly"'),
    "infra status": ("tests/infra/test_infra_upgrade_command.py", '"status"'),
    "infra approve": ("tests/infra/test_infra_upgrade_command.py", '"approve"'),
    "infra upgrade": ("tests/infra/test_infra_upgrade_command.py", '"upgrade"'),
    "infra rollback": ("tests/infra/test_infra_upgrade_command.py", '"rollback"'),
    "infra snapshots": ("tests/infra/test_infra_upgrade_command.py", '"snapshots"'),
    "infra restore": ("tests/infra/test_infra_upgrade_command.py", '"restore"'),
}


def lines_of(path: Path) -> Iterator[list[str]]:
    """The commands of a page's shell blocks, as words."""
    for block in BLOCK.findall(path.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def typed() -> list[list[str]]:
    """All lines of `cc-ci` in shell blocks, without that word, each once."""
    found = {tuple(words[1:]): None for path in DOCS for words in lines_of(path) if words[0] == "cc-ci"}
    return [list(words) for words in found]


def name_of(word: str) -> str:
    name = word.replace("-", "_")
    return RENAMED.get(name, name)


def parser_of(name: str) -> Any:
    module = commands()[name]
    command = load_command_class(module.parents[2].name, name)
    command._called_from_command_line = False  # errors are raised
    return command.create_parser("cc-ci", name)


def options_of(parser: Any, words: list[str]) -> set[str]:
    """The options of a command, and of its subcommand if the words name one."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        for word in words if isinstance(action.choices, dict) else ():
            if word in action.choices:
                found |= options_of(action.choices[word], words)
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_blocks_are_shell_that_is_known(path: Path) -> None:
    for block in BLOCK.findall(path.read_text()):
        text = re.sub(r"<[a-z ]+>", "PLACEHOLDER", block)
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    for words in lines_of(path):
        word = next((word for word in words if not SETTING.match(word)), "export")
        assert word in PROGRAMS or WITH_VENV.fullmatch(word) or word == "pytest", words


@pytest.mark.parametrize("words", typed(), ids=" ".join)
def test_every_line_is_one_that_the_command_takes(words: list[str]) -> None:
    if name_of(words[0]) in commands():
        parser_of(name_of(words[0])).parse_args([word.replace("SNAPSHOT", "3") for word in words[1:]])
    else:
        assert words in (["migrate"], ["createsuperuser"])


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_a_sentence_names_is_a_command_with_that_option(path: Path) -> None:
    for text in INLINE.findall(path.read_text()):
        words = re.split(r"[\s\[\]|,;:()]+", text.rstrip("…. "))
        if words[0] in {"COMMAND", *get_commands()} - commands().keys():
            continue
        options = options_of(parser_of(name_of(words[0])), words)
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - options - {"--help"}
        assert not unknown, f"cc-ci {text}"


def test_every_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCS:
        for block in (*BLOCK.findall(path.read_text()), *re.findall(r"`(make [^`]*)`", path.read_text())):
            assert set(re.findall(r"^(?:.*&& )?make ([a-z-]+)", block, re.MULTILINE)) <= targets, path.name


# --- what is typed is run


class Typist:
    """Runs lines of the docs, with our forge and server in the place of those that they name, and notes which it ran."""

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places
        self.ran: set[tuple[str, ...]] = set()

    def __call__(self, start: str, *, of: str, code: int = DONE) -> None:
        """Run all lines that start with these words, of this page."""
        for words in lines_of(ROOT / of):
            if words[0] == "cc-ci" and " ".join(words[1:]).startswith(start):
                self.ran.add(tuple(words[1:]))
                given = [self._placed(word) for word in words]
                assert execute(given) == code, given

    def _placed(self, word: str) -> str:
        for ours in self.places:
            word = word.replace(ours, self.places[ours])
        return word


@pytest.fixture
def server(live_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Any]]:
    """A forge that cc-ci does not know yet, with the recipes of the docs; and our own pages."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr("django.core.management.base.connections.close_all", lambda: None)
    world = World(tmp_path, "1.26")
    for name in ("nextcloud", "hedgedoc", "hello-web", "keycloak-tests"):
        world.add_recipe(name)
    yield world, live_server
    world.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow(8)
def test_what_the_docs_say_to_type_works(
    server: tuple[World, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world, pages = server
    places = {"https://git.example.org": world.server.url, "OWNER/REPO": "recipes/keycloak-tests"}
    types = Typist(places)

    types("migrate", of="docs/install.md")
    monkeypatch.setenv("FORGE_TOKEN", world.token)
    types("forge add", of="docs/install.md")
    types("enroll", of="docs/install.md")
    assert [row.full_name for row in Repository.objects.watched()] == ["recipes/nextcloud"]
    assert execute(["cc-ci", "enroll", "recipes/hedgedoc"]) == execute(["cc-ci", "enroll", "recipes/hello-web"]) == DONE
    types("doctor", of="docs/install.md")
    monkeypatch.setenv("CLIENT_SECRET", "a secret of the application")
    types("forge login", of="docs/install.md")
    assert Forge.objects.get().oauth_client_id == ""
    types("forge tests", of="docs/write-tests.md")
    assert str(Forge.objects.get().tests_repository) == "recipes/keycloak-tests"

    types("reconcile_webhooks", of="docs/webhooks.md")
    types("rotate_webhook_secret --all", of="docs/webhooks.md")
    types("rotate_webhook_secret recipes", of="docs/webhooks.md", code=MISUSE)
    assert "There is no webhook of recipes/hello-web." in capsys.readouterr().err

    for kind in ("drone", "woodpecker"):
        fake = FAKES[kind](tmp_path / kind)
        places |= {f"https://{'drone' if kind == 'drone' else 'ci'}.example.org": fake.url}
        types.places = places
        monkeypatch.setenv(f"{kind.upper()}_TOKEN", fake.token)
        monkeypatch.setenv("DRONE_SECRET", "a long random text")
        types("executor", of=f"docs/executors/{kind}.md")
        assert RemoteExecutor.objects.get(name=kind).url == fake.url
        assert execute(["cc-ci", "executor", "use", "local"]) == DONE
        fake.close()

    run = TestRunFactory(
        id=UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2"), failed=True, repository=Repository.objects.get(name="hedgedoc")
    )
    with monkeypatch.context() as at_a_terminal:
        answers = StringIO("alice\nalice@example.org\n")
        answers.isatty = lambda: True  # type: ignore[method-assign]
        at_a_terminal.setattr("sys.stdin", answers)
        at_a_terminal.setattr("getpass.getpass", lambda *prompt: "a long and good password")
        types("createsuperuser", of="docs/install.md")
    assert User.objects.get().is_superuser
    capsys.readouterr()
    types("token add", of="docs/api.md")
    token = next(word for word in capsys.readouterr().out.split() if word.startswith("ccci_"))
    types("token list", of="docs/api.md")
    monkeypatch.setenv("CC_CI_TOKEN", token)
    monkeypatch.setenv("CC_CI_SERVER", pages.url)
    types("runs", of="docs/api.md")
    types("show", of="docs/api.md")
    assert run.short_id in capsys.readouterr().out
    types("start --again", of="docs/api.md")
    again = TestRun.objects.exclude(pk=run.pk).get()
    assert again.retry_of == run
    TestRun.objects.filter(pk=run.pk).update(state="queued", finished_at=None)
    types("cancel", of="docs/api.md")
    run.refresh_from_db()
    assert run.state == "cancelled"
    TestRun.objects.all().delete()
    worker = Thread(target=_pass_the_next, daemon=True)
    worker.start()
    types("start recipes/hedgedoc", of="docs/api.md")
    worker.join()
    assert "extra" in TestRun.objects.get().stages
    places["0123456789ab"] = token.split("_")[1]
    types("token revoke", of="docs/api.md")

    left = [words for words in typed() if tuple(words) not in types.ran and not _elsewhere(words)]
    assert left == [], "run it here, or say where it is run"


def _pass_the_next() -> None:
    """Do what a worker does, in short."""
    while not TestRun.objects.filter(state="queued").update(state="passed", finished_at=timezone.now()):
        time.sleep(0.2)
    connection.close()


def _elsewhere(words: list[str]) -> bool:
    for start, (path, text) in ELSEWHERE.items():
        if words[: len(start.split())] == start.split():
            assert text in (ROOT / path).read_text(), f"{path} does not run {start}"
            return True
    return False
