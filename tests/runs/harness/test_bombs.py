"""Recipes that are bombs: small to fetch, endless to read. Each ends with a message, and leaves no process."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.deployers.compose.environment import EnvironmentProblem, Filling
from infra.deployers.compose.plain import load
from infra.git.runner import GitError
from runs.harness import checkout, dump_checks, extra_tests, lint, recipe_config
from runs.harness.checkout import Checkout, resolve
from runs.harness.protocol import ExtraTest, FolderState, Limits, Source, Verdict
from tests.runs.harness.conftest import RECIPES, ROOT, git
from tests.waiting import until

pytestmark = pytest.mark.slow(0.6)


def _raw(folder: Path, *arguments: str, given: bytes = b"") -> str:
    names = {f"GIT_{role}_{key}": "test@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **names}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=env, input=given, capture_output=True, check=True).stdout.decode().strip()


def tree_bomb(folder: Path, files: bool = False, width: int = 16, depth: int = 10) -> str:
    """A repository of a dozen objects whose commit unfolds to 16 ** 10 folders; the commit's id."""
    folder.mkdir()
    _raw(folder, "init", "--quiet")
    leaf = f"100644 blob {_raw(folder, 'hash-object', '-w', '--stdin', given=b'x')}\tfile\n".encode() if files else b""
    tree = _raw(folder, "mktree", given=leaf)
    for _ in range(depth):
        tree = _raw(folder, "mktree", given="".join(f"040000 tree {tree}\t{number:02}\n" for number in range(width)).encode())
    commit = _raw(folder, "commit-tree", tree, "-m", "Boom")
    _raw(folder, "update-ref", "refs/heads/main", commit)
    _raw(folder, "symbolic-ref", "HEAD", "refs/heads/main")
    return commit


def _working(folder: Path) -> list[psutil.Process]:
    """The processes that name this folder on their command line, but for those that are ending."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.status() != "zombie" and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


# --- git


@pytest.mark.parametrize("files", [True, False])
def test_a_tree_bomb_is_too_big(files: bool, tmp_path: Path) -> None:
    commit = tree_bomb(tmp_path / "bomb", files)
    with pytest.raises(GitError, match="The recipe is too big: more than 50000 files and folders") as caught:
        Checkout(Source(url=f"file://{tmp_path}/bomb", sha=commit), tmp_path / "checkout").make()
    assert caught.value.recipes_fault


def test_a_run_of_a_tree_bomb_fails_in_words(tmp_path: Path, run: Any) -> None:
    commit = tree_bomb(tmp_path / "bomb")
    results = run(tmp_path / "bomb", source=Source(url=f"file://{tmp_path}/bomb", sha=commit), trusted=False)
    assert results.verdict is Verdict.FAILED
    assert results.reason.startswith("Checkout failed: The recipe is too big")


@pytest.fixture
def endless_git(tmp_path: Path) -> Mapping[str, str]:
    """A PATH on which git goes on for ever when it lists a tree, with a child in a session of its own. (A bomb not yet known.)"""
    folder, real = tmp_path / "path", shutil.which("git")
    folder.mkdir()
    spin = f"exec {sys.executable} -c 'while True: pass' {tmp_path}/spin"
    (folder / "git").write_text(
        f'#!/bin/sh\ncase " $* " in *" ls-tree "*) setsid sh -c "{spin}" & {spin};; esac\nexec {real} "$@"\n'
    )
    (folder / "git").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def _commit(recipe: Path) -> Source:
    git(recipe, "init", "--quiet", "--initial-branch=main")
    git(recipe, "add", ".")
    git(recipe, "commit", "--quiet", "-m", "One")
    return Source(url=f"file://{recipe}", sha=git(recipe, "rev-parse", "HEAD"))


def test_a_git_without_an_end_has_one_at_the_runs(
    endless_git: Mapping[str, str], make_folder: Any, make_recipe: Any, harness: Any, tmp_path: Path
) -> None:
    recipe = make_recipe()
    folder = make_folder(recipe, source=_commit(recipe), limits=Limits(run_seconds=4))
    process = harness("run", folder.path, env=endless_git)
    assert process.wait(240) == 2
    assert folder.results().reason == "The run took longer than 4 s."
    assert not _working(tmp_path / "spin")


@pytest.mark.crash
def test_a_git_without_an_end_ends_with_a_harness_that_is_killed(
    endless_git: Mapping[str, str], make_folder: Any, make_recipe: Any, harness: Any, tmp_path: Path
) -> None:
    recipe = make_recipe()
    folder = make_folder(recipe, source=_commit(recipe))
    process = harness("run", folder.path, env=endless_git)
    until(lambda: len(_working(tmp_path / "spin")) == 2)
    process.kill()
    process.wait()
    until(lambda: not _working(tmp_path / "spin"))
    assert folder.state() is FolderState.LOST


@pytest.mark.crash
@pytest.mark.parametrize("command", ["run", "test"])
@pytest.mark.parametrize("where", ["git", "stage"])
def test_a_command_that_is_killed_leaves_nothing(
    command: str, where: str, endless_git: Mapping[str, str], make_recipe: Any, tmp_path: Path
) -> None:
    """Its harness is told, and tears down; what hangs ends with it."""
    if where == "git" and command == "test":
        pytest.skip("it takes a folder as it is, and lists no tree")
    slow = f"import time\ndef test_slow():\n    print('{tmp_path}/spin', flush=True)\n    time.sleep(300)\n"
    recipe = make_recipe({"test_slow": slow})
    arguments = ["--sha", _commit(recipe).sha] if where == "git" else []
    env = {"HOME": "/root", "CC_CI_DATA_DIR": str(tmp_path / "data"), "CC_CI_DEPLOYER": "process", "CC_CI_ENV_FILE": os.devnull}
    env |= {**(endless_git if where == "git" else {"PATH": os.environ["PATH"]}), "CC_CI_PICTURES": "no"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "manage.py"), command, str(recipe), *arguments],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if where == "git":
            until(lambda: len(_working(tmp_path / "spin")) == 2)
        else:
            until(lambda: any("collected 1 item" in log.read_text() for log in tmp_path.glob("data/local-runs/*/1/log.txt")))
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=240)
    assert not alive
    assert not _working(tmp_path / "spin")
    [log] = tmp_path.glob("data/local-runs/*/1/log.txt")
    assert "The run was cancelled." in log.read_text()
    assert not (log.parent / "work").exists()


class _Silent(http.server.BaseHTTPRequestHandler):
    """A forge that takes a connection and says nothing."""

    def do_GET(self) -> None:
        time.sleep(20)

    def log_message(self, *_: object) -> None:
        pass


class _Endless(http.server.BaseHTTPRequestHandler):
    """A forge that names branches without an end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        try:
            for number in range(1 << 30):
                lines = "".join(f"{'a' * 40}\trefs/heads/{'x' * 150}-{number}-{part}\n" for part in range(1000))
                self.wfile.write(lines.encode())
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def forge() -> Iterator[Callable[[Any], str]]:
    servers = []

    def start(handler: Any) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/recipe.git"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_forge_that_says_nothing_is_not_waited_for(
    forge: Any, make_folder: Any, harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = forge(_Silent)
    monkeypatch.setattr(checkout, "_TIP_SECONDS", 1.0)
    with pytest.raises(GitError, match=r"git ls-remote: (the forge did not answer within 1 s|.*Retried for 1 s)"):
        resolve(url)
    folder = make_folder("recipe", source=Source(url=url, sha="a" * 40), limits=Limits(run_seconds=3))
    assert harness("run", folder.path, env={"PATH": os.environ["PATH"]}).wait(240) == 2
    assert folder.results().reason == "The run took longer than 3 s."


def test_a_forge_that_does_not_stop_talking_is_not_listened_to(forge: Any) -> None:
    began = time.monotonic()
    with pytest.raises(GitError, match="git ls-remote"):
        resolve(forge(_Endless))
    assert time.monotonic() - began < 250


@pytest.mark.parametrize("place", ["core.fsmonitor", "clean", "process", "hook", "submodule"])
def test_nothing_in_a_folders_own_git_runs(place: str, make_recipe: Any, tmp_path: Path) -> None:
    """A folder that somebody unpacked is a stranger's with its `.git`."""
    recipe, ran = make_recipe(), tmp_path / "ran"
    _commit(recipe)
    touch = f"touch {ran}; exec 1>&2; false"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    script.chmod(0o755)
    if place == "core.fsmonitor":
        git(recipe, "config", "core.fsmonitor", str(script))
    elif place in ("clean", "process"):
        (recipe / ".gitattributes").write_text("* filter=evil.x\n")
        git(recipe, "add", ".")
        git(recipe, "commit", "--quiet", "-m", "Two")
        git(recipe, "config", f"filter.evil.x.{place}", touch)
        git(recipe, "config", "filter.evil.x.required", "true")
        os.utime(recipe / "compose.yml", (1, 1))  # so that git looks into it
    elif place == "hook":
        shutil.copy(script, recipe / ".git" / "hooks" / "post-index-change")
        os.utime(recipe / "compose.yml", (1, 1))
    else:
        inner = tmp_path / "inner"
        shutil.copytree(RECIPES / "no-web-port", inner)
        _commit(inner)
        git(recipe, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "inner")
        git(recipe, "commit", "--quiet", "-m", "Two")
        git(recipe / "inner", "config", "core.fsmonitor", str(script))
    head = git(recipe, "rev-parse", "HEAD")
    ran.unlink(missing_ok=True)
    assert Checkout(Source(url=str(recipe)), tmp_path / "checkout").make() == head
    assert not ran.exists()


def test_a_symlink_of_a_folder_leads_nowhere(make_recipe: Any, tmp_path: Path) -> None:
    """Git still knows `keys/id` as a file, and the folder has become a symlink to what is not the recipe's."""
    outside, recipe = tmp_path / "outside", make_recipe(files={"keys/id": "public"})
    outside.mkdir()
    (outside / "id").write_text("PLANTED")
    _commit(recipe)
    shutil.rmtree(recipe / "keys")
    (recipe / "keys").symlink_to(outside)
    (recipe / "loop").symlink_to("loop")
    assert Checkout(Source(url=str(recipe)), tmp_path / "checkout").make() == ""
    assert (outside / "id").read_text() == "PLANTED"
    found = {path.name for path in (tmp_path / "checkout").rglob("*") if path.is_file() and not path.is_symlink()}
    assert "compose.yml" in found and "id" not in found


@pytest.mark.parametrize("repository", [True, False])
def test_a_folder_that_is_too_big_is_not_copied(repository: bool, make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe(files={"big": "0" * (3 << 20)})
    if repository:
        _commit(recipe)
    with pytest.raises(GitError, match="The folder is too big: more than 50000 files or 2 MB"):
        Checkout(Source(url=str(recipe)), tmp_path / "checkout", disk_mb=2).make()


def test_a_huge_index_is_not_walked_through_for_ever(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe()
    _commit(recipe)
    blob = git(recipe, "hash-object", "-w", "compose.yml")
    lines = "".join(f"100644 {blob}\t{'f' * 100}/{number}\n" for number in range(300_000))
    _raw(recipe, "update-index", "--index-info", given=lines.encode())
    with pytest.raises(GitError, match=r"too big|more than") as caught:
        Checkout(Source(url=str(recipe)), tmp_path / "checkout").make()
    assert caught.value.recipes_fault


# --- the harness's own bounds


def _in_harness(body: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that is bound as the harness is, with a run of one second."""
    program = (
        "import pathlib, re, sys, time\nfrom runs.harness import daemonize\nfrom runs.harness.deadlines import Deadlines\n"
        "deadlines = Deadlines(pathlib.Path('/nonexistent'), 1)\ndaemonize.begin(deadlines, 1)\n" + body
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=seconds)


@pytest.mark.parametrize(
    "endless",
    ["re.match('(a+)+$', 'a' * 50 + 'b')", "time.sleep(100)", "while True: pass"],
)
def test_what_looks_at_no_clock_is_interrupted_all_the_same(endless: str) -> None:
    done = _in_harness(f"try:\n  with deadlines.insisting():\n    {endless}\nexcept Exception as error:\n  print(error)\n")
    assert done.stdout == "The run took longer than 1 s.\n", done.stderr


def test_a_child_that_is_read_from_is_interrupted_too() -> None:
    body = (
        "import os, subprocess\nfrom infra.deployers.isolation import children\ntry:\n  with deadlines.insisting():\n"
        "    with children.running(['sleep', '300'], env=dict(os.environ), stdout=subprocess.PIPE) as child:\n"
        "      child.stdout.read()\nexcept Exception as error:\n  print(error, child.poll())\n"
    )
    assert _in_harness(body).stdout == "The run took longer than 1 s. -9\n"


def test_a_teardown_is_not_interrupted() -> None:
    assert _in_harness("time.sleep(5)\nprint('done')\n").stdout == "done\n"


def test_memory_is_bound_and_that_of_children_is_not_bound_by_it() -> None:
    body = (
        "import os\nfrom infra.deployers.isolation import children\n"
        "try:\n  bytearray(2 << 30)\nexcept MemoryError:\n  print('MemoryError')\n"
        "print(children.run(['sh', '-c', 'ulimit -d; ulimit -t'], env=dict(os.environ), seconds=30, memory_mb=0).out.decode())\n"
    )
    assert _in_harness(body).stdout.split() == ["MemoryError", "unlimited", "unlimited"]


def test_a_recipe_that_takes_more_memory_than_there_is_ends_in_words(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs.harness import prepare
    from runs.harness.engine import Engine

    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare, "read", hungry)
    results = Engine(make_folder(RECIPES / "process-web")).run()
    assert results.verdict is Verdict.ERRORED
    assert results.reason == "Reading the recipe takes more than the 1536 MB of memory that the harness has for it."
    assert results.teardown.clean


# --- files: twice as long takes about twice the time


def _is_linear(work: Callable[[int], object], size: int, times: int = 6) -> None:
    """Assert that `times` as much takes far less than the square of it, on this machine, now. `size` takes some milliseconds."""

    def seconds(amount: int) -> float:
        taken = []
        for _ in range(3):
            began = time.process_time()
            work(amount)
            taken.append(time.process_time() - began)
        return min(taken)

    few, many = seconds(size), seconds(size * times)
    assert many < 2.2 * times * max(few, 0.002), f"{size}: {few:.3f} s, {size * times}: {many:.3f} s"


def _toml(size: int) -> None:
    with pytest.raises(recipe_config.RecipeConfigError, match=r"Cannot read cc-ci\.toml: a key has more than 100 parts"):
        recipe_config.parse(("a." * (size // 2) + "a = 1\n").encode())


def test_keys_of_many_parts_are_refused_before_they_are_read() -> None:
    _is_linear(_toml, 8_000)


@pytest.mark.parametrize(
    "text",
    ["a = " + "9" * 60_000, "a = " + "[" * 60_000, "a = 1." + "1" * 60_000, "[[a]]\n" * 10_000, "a = '''" + "x" * 70_000],
)
def test_other_bombs_of_toml_are_the_recipes_own(text: str) -> None:
    with pytest.raises(recipe_config.RecipeConfigError):
        recipe_config.parse(text.encode())


def test_variables_are_filled_in_at_the_price_of_the_text() -> None:
    values = {f"VARIABLE_{number}": "x" for number in range(100_000)}

    def fill(size: int) -> None:
        filling = Filling(values)
        for _ in range(size):
            filling.fill("${VARIABLE_7} and more")

    _is_linear(fill, 500)


def test_what_is_filled_in_does_not_grow_without_an_end() -> None:
    with pytest.raises(EnvironmentProblem, match="longer than 100,000 characters"):
        Filling({"X": "x" * 50_000}).fill("$X" * 10_000)
    filling = Filling({"X": "x" * 50_000})
    with pytest.raises(EnvironmentProblem, match="longer than 1,000,000 characters"):
        for _ in range(100):
            filling.fill("$X")


def _named(checkout: Path, *lines: str) -> Path:
    checkout.mkdir(exist_ok=True)
    (checkout / "compose.yml").write_text("".join(lines))
    return checkout


def test_lint_finds_lines_at_the_price_of_the_text(tmp_path: Path) -> None:
    def work(size: int) -> None:
        configs = "".join(f"  c{number}: {{name: '${{STACK_NAME}}_c_${{C_VERSION}}'}}\n" for number in range(size))
        assert lint.lint(_named(tmp_path / "recipe", "version: '3.8'\nservices: {app: {}}\nconfigs:\n", configs))

    _is_linear(work, 300)


def test_a_compose_file_is_named_fifty_times_at_most(context: Any, tmp_path: Path) -> None:
    checkout = _named(tmp_path / "recipe", "services: {app: {}}\n")
    (checkout / ".env.sample").write_text(f"COMPOSE_FILE={':'.join(['compose.yml'] * 51)}\n")
    with pytest.raises(Exception, match="names 51 compose files, more than 50"):
        load(context(checkout), checkout)


@pytest.fixture
def context(tmp_path: Path) -> Callable[[Path], Any]:
    from infra.deployers.context import Context

    def make(checkout: Path) -> Context:
        return Context(
            run_id="0" * 32, installation="test", recipe="web", checkout=checkout, work=tmp_path, domain="web.localhost"
        )

    return make


@pytest.mark.parametrize("tag", ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "1:1.0e" + ":1" * 300 + ".0"])
def test_a_tag_that_lies_is_the_recipes_fault(tag: str, context: Any, tmp_path: Path) -> None:
    checkout = _named(tmp_path / "recipe", f"services: {{app: {{image: {tag}}}}}\n")
    try:
        load(context(checkout), checkout)
    except Exception as error:
        assert "compose.yml cannot be read" in str(error), error


def test_a_dump_that_wants_a_huge_dictionary_is_damaged() -> None:
    import lzma

    def hungry(_file: object) -> Any:
        raise MemoryError

    with pytest.raises(dump_checks._Incomplete, match="needs too much memory to unpack"):
        dump_checks._unpacked(lzma.compress(b"x"), "xz", hungry)


def test_covers_are_compared_before_the_teardown_and_not_after(make_folder: Any) -> None:
    """Nothing in the conclusion of a run, which nobody interrupts, takes a stranger's patterns to a stranger's paths."""
    from runs.harness import prepare

    tests = [ExtraTest(file="extra/test_x.py", name="test_x", covers=["compose.yml"])]
    ready = prepare.Prepared(context=None, sha="", tests=tests, changed=["compose.yml"])  # type: ignore[arg-type]
    assert prepare.extras_of(ready, ran=False).suggested == []
    assert extra_tests.suggested(tests, ["compose.yml"]) == tests
