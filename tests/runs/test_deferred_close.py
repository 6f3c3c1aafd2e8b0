"""Closing a deferred test: what the commit, the test and the runs must show, and how the tick gets into the file."""

from __future__ import annotations

import io
import subprocess
from html import unescape
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from controlplane.cli import OURS, Exit
from controlplane.untrusted import ZERO_WIDTH
from enrollment.fakeforge import git
from enrollment.fakeforge.faults import Fault, Request
from enrollment.models import Repository
from runs.models import DeferredItem, TestRun
from tests.factories import CaseResultFactory, StageResultFactory, TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.7)]

TEST = "extra/test_login.py"
CODE = "def test_login(app):\n    assert app.get('/login')\n"
REGISTRY = (
    b"\xef\xbb\xbf## Open deferrals\r\n\r\n"
    b"### 2026-01-01 \xe2\x80\x94 web-login\r\n\r\n- [ ] **What:** Log in. \xf0\x9f\x94\x91\r\n"
    b"- **Filed by:** alice\r\n\r\n### 2026-01-02 \xe2\x80\x94 web-logout\r\n- [ ] **What:** Log out. \xff"
)


@pytest.fixture
def registry(world: World) -> Repository:
    """A registry of two entries about recipes/web, read into rows; the bot may not push there."""
    world.remote.add_repo("recipes", "registry", files={"DEFERRED.md": REGISTRY})
    (row,) = world.enroll("recipes/registry")
    call_command("deferred", "sync", "recipes/registry", stdout=io.StringIO())
    return row


@pytest.fixture
def port(world: World) -> str:
    """The commit on main that ports the test."""
    return world.remote.push("recipes/web", "main", {TEST: CODE}, "Port the login")


def ran(sha: str, status: str = "passed", stage: str = "passed", file: str = TEST) -> TestRun:
    """A run of recipes/web at `sha` with the test in its stage extra."""
    repository = Repository.objects.get(name="web")
    run: TestRun = TestRunFactory(repository=repository, pull_request=None, sha=sha, passed=True, stages=["install", "extra"])
    CaseResultFactory(stage=StageResultFactory(run=run, name="extra", order=5, status=stage), file=file, status=status)
    return run


def close(sha: str, *more: str, slug: str = "web-login", test: str = TEST) -> tuple[str, str]:
    output, errors = io.StringIO(), io.StringIO()
    call_command("deferred", "close", slug, "--commit", sha, "--test", test, *more, stdout=output, stderr=errors)
    return output.getvalue(), errors.getvalue()


def refusal(sha: str, *more: str, **options: str) -> str:
    """Why it was refused; nothing may have been changed."""
    before = list(DeferredItem.objects.order_by("pk").values())
    with pytest.raises(CommandError) as error:
        close(sha, *more, **options)
    assert error.value.returncode == 64
    assert list(DeferredItem.objects.order_by("pk").values()) == before
    return str(error.value)


def item(slug: str = "web-login") -> DeferredItem:
    return DeferredItem.objects.get(slug=slug)


def ticked(sha: str) -> bytes:
    line = f"- **Closed by:** {sha} ({TEST})\r\n".encode()
    return REGISTRY.replace(b"[ ]", b"[x]", 1).replace(b"alice\r\n", b"alice\r\n" + line)


def on(world: World, branch: str) -> bytes:
    folder = world.remote.folder(world.remote.repo("recipes/registry"))
    return git.git(folder, "cat-file", "blob", f"refs/heads/{branch}:DEFERRED.md")


# --- the tick


def test_without_a_right_to_push_the_patch_is_printed(world: World, registry: Repository, port: str, tmp_path: Path) -> None:
    run = ran(port)
    from runs.deferred import registry as deferred

    done = deferred.close(item(), port[:10], TEST)
    assert not done.pull_url and not done.written
    (tmp_path / "DEFERRED.md").write_bytes(REGISTRY)
    subprocess.run(["git", "apply", "-p1"], input=done.patch, cwd=tmp_path, check=True)
    assert (tmp_path / "DEFERRED.md").read_bytes() == ticked(port)
    row = item()
    assert (row.state, row.closed_commit, row.closed_test, row.proof, row.unproven) == ("closed", port, TEST, run, False)
    assert row.closed_at and not row.ticked
    assert on(world, "main") == REGISTRY

    output, errors = close(port)  # again: the same patch
    assert output.startswith("--- a/DEFERRED.md\n+++ b/DEFERRED.md\n@@") and f"+- **Closed by:** {port} ({TEST})" in output
    assert "cc-ci may not change recipes/registry:DEFERRED.md" in errors and f"proven by {run.url}" in errors
    assert "(guess: its slug starts with the name)" in errors


def test_the_patch_alone_is_on_standard_output_byte_for_byte(
    world: World, registry: Repository, port: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    call_command("deferred", "close", "web-login", "--commit", port, "--test", TEST, "--unproven")
    (tmp_path / "DEFERRED.md").write_bytes(REGISTRY)
    subprocess.run(["git", "apply", "-p1"], input=capsysbinary.readouterr().out, cwd=tmp_path, check=True)
    assert (tmp_path / "DEFERRED.md").read_bytes() == ticked(port)


def test_with_a_right_to_push_a_pull_request_is_opened(world: World, registry: Repository, port: str) -> None:
    ran(port)
    world.remote.add_collaborator("recipes/registry", "cc-ci", "write")
    output, errors = close(port)
    assert output == ""
    pull = world.remote.pull("recipes/registry", 1)
    assert pull.title == "Close the deferred test web-login" and port in pull.body
    assert f"<code>{TEST}</code>" in unescape(pull.body).replace(ZERO_WIDTH, "")
    assert item().pull_url == f"{world.server.url}/recipes/registry/pulls/1" and item().pull_url in errors
    assert (on(world, "main"), on(world, "cc-ci/close-web-login")) == (REGISTRY, ticked(port))

    close(port)  # again: it is asked for already, and nothing is doubled
    with pytest.raises(LookupError):
        world.remote.pull("recipes/registry", 2)

    assert (item().state, item().ticked) == ("closed", False)
    world.remote.merge_pull(pull, "root")
    output = io.StringIO()
    call_command("deferred", "sync", "recipes/registry", stdout=output)
    assert (item().state, item().ticked, item().closed_commit) == ("closed", True, port)
    assert item("web-logout").state == "open"
    assert "web-login is already closed by" in refusal(port)


def test_a_file_of_this_machine_is_changed_in_place(world: World, port: str, tmp_path: Path) -> None:
    ran(port)
    file = tmp_path / "DEFERRED.md"
    file.write_bytes(REGISTRY)
    file.chmod(0o640)
    call_command("deferred", "sync", str(file), stdout=io.StringIO())
    output, errors = close(port)
    assert file.read_bytes() == ticked(port) and file.stat().st_mode & 0o777 == 0o640
    assert f"Changed {file}" in errors and f"+- **Closed by:** {port}" in output
    assert not list(tmp_path.glob(".DEFERRED*"))
    assert item().ticked
    output = io.StringIO()
    call_command("deferred", "sync", str(file), stdout=output)
    assert "0 changes" in output.getvalue()


def test_what_fails_at_the_forge_can_be_repeated(world: World, registry: Repository, port: str) -> None:
    ran(port)
    world.remote.add_collaborator("recipes/registry", "cc-ci", "write")

    def plan(request: Request) -> Fault | None:
        return Fault(status=500) if request.method == "POST" and request.path.endswith("/pulls") else None

    world.remote.faults = plan
    with pytest.raises(Exit) as stop:
        close(port)
    assert stop.value.code == OURS
    assert (item().state, item().pull_url) == ("closed", "")
    world.remote.faults = None
    close(port)
    assert on(world, "cc-ci/close-web-login") == ticked(port)
    assert item().pull_url.endswith("/pulls/1")


def test_a_branch_of_this_name_with_something_else_is_left_alone(world: World, registry: Repository, port: str) -> None:
    ran(port)
    world.remote.add_collaborator("recipes/registry", "cc-ci", "write")
    world.remote.push("recipes/registry", "cc-ci/close-web-login", {"DEFERRED.md": "mine\n"})
    with pytest.raises(CommandError, match="has a branch cc-ci/close-web-login with another change"):
        close(port)
    assert on(world, "cc-ci/close-web-login") == b"mine\n"


def test_source_tells_which_of_two_files(world: World, registry: Repository, port: str, tmp_path: Path) -> None:
    ran(port)
    (tmp_path / "DEFERRED.md").write_bytes(REGISTRY)
    call_command("deferred", "sync", str(tmp_path), stdout=io.StringIO())
    assert "Several files have an entry web-login: add --source with one of DEFERRED.md, recipes/registry:DEFERRED.md" in refusal(
        port
    )
    close(port, "--source", str(tmp_path))
    assert (tmp_path / "DEFERRED.md").read_bytes() == ticked(port)
    assert DeferredItem.objects.get(source_repository=registry, slug="web-login").state == "open"


# --- what must be shown


def test_the_commit_must_be_the_recipes(world: World, registry: Repository, port: str) -> None:
    ran(port)
    assert "have no commit 0123456789" in refusal("0123456789")
    assert "Invalid commit 'main': give 7 to 40 hex digits" in refusal("main")
    pull = world.add_fork_pull("recipes/web")
    fork = world.remote.push("mallory/web", "patch", {TEST: "def test_login():\n    pass\n"}, "Sneak in", "mallory")
    ran(fork)
    assert fork == world.remote.pull("recipes/web", pull.number).head_sha
    assert "Has its pull request been merged?" in refusal(fork)


def test_the_commit_must_add_or_touch_the_test(world: World, registry: Repository, port: str) -> None:
    other = world.remote.push("recipes/web", "main", {"notes.md": "n\n"}, "Write notes")
    gone = world.remote.push("recipes/web", "main", {TEST: None}, "Take it away")
    for sha in (other, gone):
        ran(sha)
        assert f"{sha[:10]} does not add or change {TEST}" in refusal(sha)
    assert "does not add or change extra/test_log*.py" in refusal(port, test="extra/test_log*.py")


def test_a_merge_counts_for_what_it_brought(world: World, registry: Repository) -> None:
    world.remote.push("recipes/web", "change", {TEST: CODE}, "Port the login", "alice")
    merge = world.remote.merge_pull(world.remote.pull("recipes/web", 1), "root")
    run = ran(merge)
    close(merge)
    assert (item().closed_commit, item().proof) == (merge, run)


def test_the_test_must_be_an_extra_test(world: World, registry: Repository) -> None:
    sha = world.remote.push("recipes/web", "main", {"tests/test_login.py": CODE})
    ran(sha, file="tests/test_login.py")
    assert "tests/test_login.py has no extra test at" in refusal(sha, test="tests/test_login.py")
    marked = "import pytest\n\n@pytest.mark.extra\n" + CODE
    sha = world.remote.push("recipes/web", "main", {"tests/test_login.py": marked})
    ran(sha, file="tests/test_login.py")
    close(sha, test="./tests/test_login.py")
    assert item().closed_test == "tests/test_login.py"


def test_a_run_must_have_passed_it_at_the_commit_or_after(world: World, registry: Repository) -> None:
    before = world.remote.push("recipes/web", "main", {"notes.md": "n\n"})
    port = world.remote.push("recipes/web", "main", {TEST: CODE})
    after = world.remote.push("recipes/web", "main", {"notes.md": "m\n"})
    assert f"No run with extra tests at {port[:10]} or later passed {TEST}." in refusal(port)
    ran(before)
    ran(port, file="extra/test_other.py")
    ran("f" * 40)
    assert "--unproven closes the entry without" in refusal(port)
    failed = ran(after, status="failed", stage="failed")
    assert failed.url in refusal(port)
    ran(after, status="skipped")
    half = ran(after)
    CaseResultFactory(stage=half.stage_results.get(), file=TEST, status="failed")
    refusal(port)
    good = ran(after)
    CaseResultFactory(stage=good.stage_results.get(), file=TEST, status="skipped")
    close(port)
    assert item().proof == good


def test_a_run_of_another_recipe_proves_nothing(world: World, registry: Repository, port: str) -> None:
    run = ran(port)
    TestRun.objects.filter(pk=run.pk).update(repository=registry)
    refusal(port)


def test_unproven_is_said_and_written_down(registry: Repository, port: str) -> None:
    _, errors = close(port, "--unproven")
    assert "without proof" in errors
    assert (item().state, item().unproven, item().proof) == ("closed", True, None)
    other = f"{port[:-1]}{'0' if port[-1] != '0' else '1'}"
    assert "have no commit" in refusal(other, "--unproven")


def test_it_is_closed_once(world: World, registry: Repository, port: str) -> None:
    second = world.remote.push("recipes/web", "main", {TEST: CODE + "\n"})
    stale = item()
    close(port, "--unproven")
    assert f"web-login is already closed by {port[:10]} ({TEST})." in refusal(second, "--unproven")
    from runs.deferred import registry as deferred

    with pytest.raises(deferred.Refused, match="already closed"):  # another worker was first
        deferred.close(stale, second, TEST, unproven=True)
    assert item().closed_commit == port


def test_an_entry_that_is_gone_from_the_file_or_unknown(world: World, registry: Repository, port: str) -> None:
    ran(port)
    assert "There is no entry nothing." in refusal(port, slug="nothing")
    world.remote.push("recipes/registry", "main", {"DEFERRED.md": "## Open deferrals\n"})
    assert "no longer has an entry web-login of 2026-01-01. Run: cc-ci deferred sync recipes/registry:DEFERRED.md" in refusal(
        port
    )
    Repository.objects.filter(pk=registry.pk).delete()
    assert "is no longer enrolled" in refusal(port)


def test_a_day_tells_two_entries_apart_and_recipe_decides(world: World, port: str, tmp_path: Path) -> None:
    text = "## Open deferrals\n### 2026-01-01 — login\n- [ ] **What:** a\n### 2026-01-02 — login\n- [ ] **What:** b\n"
    (tmp_path / "DEFERRED.md").write_text(text)
    call_command("deferred", "sync", str(tmp_path), stdout=io.StringIO(), stderr=io.StringIO())
    assert "Several entries are named login: write 2026-01-02-login or 2026-01-01-login." in refusal(port, slug="login")
    assert "add --recipe NAME" in refusal(port, slug="2026-01-02-login")
    close(port, "--recipe", "web", "--unproven", slug="2026-01-02-login")
    assert (tmp_path / "DEFERRED.md").read_text() == text.replace(
        "[ ] **What:** b\n", f"[x] **What:** b\n- **Closed by:** {port} ({TEST})\n"
    )
    row = DeferredItem.objects.get(state="closed")
    assert (row.filed_on.day, row.recipe_by) == (2, "hand") and row.recipe and row.recipe.name == "web"


def test_a_private_recipe_is_fetched_with_the_token(world: World, registry: Repository, port: str) -> None:
    ran(port)
    world.remote.set_private("recipes/web")
    with pytest.raises(Exit):
        close(port)
    Repository.objects.filter(name="web").update(private=True)
    close(port)
    assert item().state == "closed"


def test_a_test_that_the_server_keeps_closes_an_entry(world: World, registry: Repository) -> None:
    test = "tests/web/extra/test_login.py"
    world.remote.add_repo("recipes", "kept", files={"README.md": b"Tests"})
    (row,) = world.enroll("recipes/kept")
    before = world.remote.push("recipes/kept", "main", {"other.txt": "x"}, "Before it")
    sha = world.remote.push("recipes/kept", "main", {test: CODE}, "Port the login")
    said = refusal(sha, test=test)
    assert "have no commit" in said  # it is no commit of the recipe
    row.forge.tests_repository = row
    row.forge.save()
    assert "No run with extra tests" in refusal(sha, test=test)
    run = ran("a" * 40, file=f"kept with the server: {test}")
    TestRun.objects.filter(pk=run.pk).update(details={"kept": before[:12]})
    assert "No run with extra tests" in refusal(sha, test=test)  # it ran the tests of before
    TestRun.objects.filter(pk=run.pk).update(details={"kept": sha[:12]})
    close(sha, test=test)
    assert (item().state, item().closed_commit, item().closed_test, item().proof) == ("closed", sha, test, run)
