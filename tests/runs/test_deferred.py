"""Taking a DEFERRED.md over into rows, whose its entries are, and where they are shown."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from runs.deferred import registry
from runs.deferred.registry import guess_recipe, would_close
from runs.deferred.sources import find_source
from runs.harness.protocol import ExtraTest
from runs.models import DeferredItem
from tests.factories import DeferredItemFactory, RepositoryFactory
from tests.world import World

pytestmark = pytest.mark.django_db

SHIPPED = Path(__file__).parents[2] / "docs" / "examples" / "DEFERRED.md"
ODD = Path(__file__).parents[1] / "data" / "deferred" / "odd.md"
SLUGS = {"matrix-synapse-compress-state", "matrix-synapse-complexity-limit", "matrix-synapse-purge"}


def run(*words: str) -> tuple[str, str]:
    """What the command prints, and what it says beside."""
    output, errors = io.StringIO(), io.StringIO()
    call_command("deferred", *words, stdout=output, stderr=errors)
    return output.getvalue(), errors.getvalue()


def row(slug: str = "a") -> DeferredItem:
    return DeferredItem.objects.get(slug=slug)


def entry(slug: str = "a", box: str = " ", what: str = "Port it.", *more: str) -> str:
    return "\n".join([f"### 2026-01-01 — {slug}", "", f"- [{box}] **What:** {what}", *more, "", ""])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "DEFERRED.md"


def put(file: Path, *entries: str) -> Path:
    file.write_text("## Open deferrals\n\n" + "".join(entries))
    return file


# --- sync


def test_the_shipped_entries_are_taken_over_once() -> None:
    recipe = RepositoryFactory(name="matrix-synapse")
    RepositoryFactory(name="matrix")
    output, errors = run("sync", str(SHIPPED))
    assert "3 entries, 3 changes." in output and not errors
    assert {item.slug for item in DeferredItem.objects.all()} == SLUGS
    for item in DeferredItem.objects.all():
        assert (item.state, item.ticked, item.recipe, item.recipe_by) == ("open", False, recipe, "slug")
        assert item.guessed and item.filed_on == date(2026, 5, 28) and item.source == str(SHIPPED)
    before = list(DeferredItem.objects.order_by("pk").values())
    output, errors = run("sync", str(SHIPPED.parent))
    assert output == f"{SHIPPED}: 3 entries, 0 changes.\n" and not errors
    assert list(DeferredItem.objects.order_by("pk").values()) == before


def test_what_could_not_be_read_is_said_by_line_and_the_rest_is_taken() -> None:
    output, errors = run("sync", str(ODD))
    assert "3 entries, 3 changes." in output
    assert "Could not read line 31: invalid date 2026-02-30: expected YYYY-MM-DD." in errors
    assert errors.count("Could not read ") == 6
    ghost = row("ghost-create-a-post")
    assert (ghost.state, ghost.ticked, ghost.closed_test) == ("closed", True, "tests/extra/test_post.py")
    assert row("cryptpad-create-a-pad").state == "open"  # under the closed ones, with an empty box
    assert "0 changes." in run("sync", str(ODD))[0]


def test_an_entry_that_was_ticked_closes_its_row(file: Path) -> None:
    run("sync", str(put(file, entry())))
    put(file, entry("a", "x", "Port it.", "- **Closed by:** 0123456789 (extra/test_a.py)"))
    output, _ = run("sync", str(file))
    assert "closed: a\n" in output and "1 entry, 1 change." in output
    assert (row().state, row().ticked, row().closed_commit, row().closed_test) == (
        "closed",
        True,
        "0123456789",
        "extra/test_a.py",
    )
    assert row().closed_at and "0 changes" in run("sync", str(file))[0]


def test_a_tick_that_was_taken_back_opens_it_again(file: Path) -> None:
    run("sync", str(put(file, entry("a", "x", "Port it.", "- **Closed by:** 0123456789 (t.py)"))))
    assert "reopened: a" in run("sync", str(put(file, entry())))[0]
    assert (row().state, row().ticked, row().closed_commit, row().closed_at) == ("open", False, "", None)


def test_what_was_closed_here_stays_so_until_its_tick_arrives(file: Path) -> None:
    run("sync", str(put(file, entry())))
    DeferredItem.objects.update(state="closed", closed_commit="c" * 40, closed_test="t.py")
    assert "0 changes" in run("sync", str(file))[0]
    assert row().state == "closed"
    assert "1 change." in run("sync", str(put(file, entry("a", "x"))))[0]
    assert (row().ticked, row().closed_commit) == (True, "c" * 40)


def test_an_entry_that_vanished_is_kept_and_shown_as_such(file: Path) -> None:
    run("sync", str(put(file, entry("a"), entry("b"))))
    assert "vanished: b" in run("sync", str(put(file, entry("a"))))[0]
    assert row("b").vanished_at and "0 changes" in run("sync", str(file))[0]
    assert "open, removed from its file" in run("list")[0]
    assert "returned: b" in run("sync", str(put(file, entry("a"), entry("b"))))[0]
    assert row("b").vanished_at is None


def test_an_entry_that_cannot_be_read_any_more_has_not_vanished(file: Path) -> None:
    run("sync", str(put(file, entry("a"), entry("b"))))
    output, errors = run("sync", str(put(file, entry("a"), entry("b", "?"))))
    assert "0 changes" in output
    assert "the box of b contains '?'" in errors and "not readable: b; left" in errors
    assert row("b").vanished_at is None


def test_a_changed_text_is_a_change_and_a_moved_line_is_none(file: Path) -> None:
    run("sync", str(put(file, entry("a"))))
    assert "changed: a" in run("sync", str(put(file, entry("a", " ", "Port it soon."))))[0]
    output, _ = run("sync", str(put(file, entry("new"), entry("a", " ", "Port it soon."))))
    assert "added: new" in output and "1 change." in output
    assert row().line == 7


def test_the_same_slug_in_two_files_is_two_rows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run("sync", str(put(tmp_path / name / "DEFERRED.md", entry())))
    assert DeferredItem.objects.filter(slug="a").count() == 2
    with pytest.raises(CommandError, match="Several files have an entry a: add --source"):
        run("close", "a", "--commit", "0" * 40, "--test", "t.py", "--recipe", RepositoryFactory().name)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("nowhere", "There is no file or folder nowhere here, and no such enrolled repository"),
        ("recipes/web", "No forge is configured yet"),
        ("{tmp}", "has no DEFERRED.md"),
    ],
)
def test_a_source_that_is_none(typed: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=said) as error:
        run("sync", typed.format(tmp=tmp_path))
    assert error.value.returncode == 64


def test_an_enrolled_repository_is_read_through_its_forge(world: World) -> None:
    with pytest.raises(CommandError, match=r"recipes/web has no DEFERRED\.md on main"):
        run("sync", "recipes/web")
    world.remote.push("recipes/web", "main", {"DEFERRED.md": SHIPPED.read_text(), "docs/D.md": "## Open deferrals\n" + entry()})
    assert "recipes/web:DEFERRED.md: 3 entries, 3 changes." in run("sync", "Recipes/web")[0]
    assert "0 changes" in run("sync", "recipes/web")[0]
    assert "recipes/web:docs/D.md: 1 entry, 1 change." in run("sync", "recipes/web:docs/D.md")[0]
    assert row().source_repository and row().file_name == "recipes/web:docs/D.md"
    # Known by its id: a repository that was renamed is the same file.
    row().source_repository.__class__.objects.update(name="site", html_url=f"{world.server.url}/recipes/site")
    world.remote.rename_repo("recipes/web", "site")
    assert "changed: a" in run("sync", "recipes/site:docs/D.md")[0]
    assert DeferredItem.objects.count() == 4 and row().source.endswith("/recipes/site:docs/D.md")


# --- whose


@pytest.mark.parametrize(
    ("slug", "what", "name", "by"),
    [
        ("matrix-synapse-purge", "", "matrix-synapse", "slug"),
        ("matrix_synapse test_purge.sh", "", "matrix-synapse", "slug"),
        ("matrix-purge", "", "matrix", "slug"),
        ("matrixes-purge", "", "", ""),
        ("create-a-post", "Create a post in `ghost`, with a picture.", "ghost", "what"),
        ("create-a-post", "Create a post in Ghost.", "ghost", "what"),
        ("create-a-post", "Create ghosts.", "", ""),
        ("login", "Log in to ghost by matrix.", "", ""),
        ("login", "Log in to matrix-synapse.", "matrix-synapse", "what"),
    ],
)
def test_the_recipe_of_an_entry(slug: str, what: str, name: str, by: str) -> None:
    assert guess_recipe(slug, what, ["matrix", "matrix-synapse", "ghost"])[:2] == (name, by)


def test_no_guess_and_several_are_said(file: Path) -> None:
    RepositoryFactory(name="ghost"), RepositoryFactory(name="matrix")
    _, errors = run("sync", str(put(file, entry("login", " ", "ghost by matrix"), entry("x", " ", "y"))))
    assert "What names several recipes (matrix, ghost); set it with `--recipe NAME`." in errors
    assert "x: it names no enrolled recipe; set it with `--recipe NAME`." in errors
    assert "unknown" in run("list")[0]


def test_what_a_person_decided_stays(file: Path) -> None:
    ghost, other = RepositoryFactory(name="ghost"), RepositoryFactory(name="other")
    run("sync", str(put(file, entry("ghost-login"))))
    assert row("ghost-login").recipe == ghost and "ghost ?" in run("list")[0]
    run("sync", str(file), "--recipe", "recipes/other")
    assert (row("ghost-login").recipe, row("ghost-login").guessed) == (other, False)
    assert "0 changes" in run("sync", str(file))[0]
    assert row("ghost-login").recipe == other and "?" not in run("list")[0]


def test_a_name_that_two_repositories_have(file: Path) -> None:
    RepositoryFactory(name="ghost", owner="a"), RepositoryFactory(name="ghost", owner="b")
    _, errors = run("sync", str(put(file, entry("ghost-login"))))
    assert "several repositories have this name (a/ghost, b/ghost)" in errors
    with pytest.raises(CommandError, match="Several recipes are named ghost; give one of a/ghost, b/ghost"):
        run("sync", str(file), "--recipe", "ghost")
    run("sync", str(file), "--recipe", "b/ghost")
    assert row("ghost-login").recipe.owner == "b"  # type: ignore[union-attr]


# --- list


def test_the_list_by_recipe_and_state() -> None:
    one = DeferredItemFactory(slug="ghost-a", recipe__name="ghost")
    DeferredItemFactory(
        slug="ghost-b", recipe=one.recipe, state="closed", closed_commit="c" * 40, closed_test="t.py", unproven=True
    )
    DeferredItemFactory(slug="other-c")
    assert [line.split()[2] for line in run("list")[0].splitlines()[1:]] == ["ghost-a", "ghost-b", "other-c"]
    shown, _ = run("list", "--recipe", "GHOST")
    assert "other-c" not in shown and "cccccccccc t.py (the box is still empty) (unproven)" in shown
    rows: list[dict[str, Any]] = json.loads(run("list", "--recipe", "recipes/ghost", "--open", "--json")[0])
    assert [(item["slug"], item["recipe"], item["guess"], item["state"]) for item in rows] == [
        ("ghost-a", "recipes/ghost", True, "open")
    ]
    assert "No entries." in run("list", "--recipe", "nobody")[0]


# --- pull requests


def test_a_pull_request_that_ports_an_entry() -> None:
    item = DeferredItemFactory(slug="matrix-synapse-compress-state", recipe__name="matrix-synapse")
    DeferredItemFactory(slug="matrix-synapse-purge", recipe=item.recipe)
    DeferredItemFactory(slug="matrix-synapse-compress-state", recipe__name="elsewhere", source="/other")
    tests = [ExtraTest(file="extra/test_compress_state.py", name="test_it"), ExtraTest(file="extra/test_x.py", name="test_purge")]
    changed = ["extra/test_compress_state.py", "compose.yml"]
    assert would_close("matrix-synapse", tests, changed) == ["matrix-synapse-compress-state"]
    assert would_close("recipes/matrix-synapse", tests, ["extra/test_x.py"]) == ["matrix-synapse-purge"]
    assert would_close("matrix-synapse", tests, ["compose.yml"]) == []
    assert would_close("matrix-synapse", [], changed) == []
    DeferredItem.objects.filter(pk=item.pk).update(state="closed")
    assert would_close("matrix-synapse", tests, changed) == []


def test_the_report_on_a_public_recipe_tells_nothing_of_a_private_registry() -> None:
    hidden = RepositoryFactory(private=True)
    item = DeferredItemFactory(slug="ghost-login", recipe__name="ghost", source_repository=hidden, source_path="DEFERRED.md")
    tests = [ExtraTest(file="extra/test_login.py", name="test_it")]
    assert would_close("ghost", tests, ["extra/test_login.py"]) == []
    type(item.recipe).objects.filter(pk=item.recipe.pk).update(private=True)
    assert would_close("ghost", tests, ["extra/test_login.py"]) == ["ghost-login"]


# --- pages


def test_the_public_page(client: Client) -> None:
    assert "There are no deferred tests" in client.get("/deferred/").content.decode()
    item = DeferredItemFactory(slug="ghost-<b>login", recipe__name="ghost", what="Log in & out.", why="Needs hands.")
    DeferredItemFactory(slug="other-done", state="closed", ticked=True, closed_commit="c" * 40, closed_test="extra/test_x.py")
    page = client.get("/deferred/").content.decode()
    assert "ghost-&lt;b&gt;login" in page and "Log in &amp; out." in page and "Needs hands." in page
    assert "a guess" in page and "extra/test_x.py" in page and "/srv/registry" not in page
    assert f"{item.recipe.owner}/ghost" in page
    assert "other-done" not in client.get("/deferred/", {"state": "open"}).content.decode()
    assert "ghost-" not in client.get("/deferred/", {"recipe": "recipes/nothing"}).content.decode()
    assert "other-done" not in client.get("/deferred/", {"recipe": "recipes/ghost"}).content.decode()
    assert client.post("/deferred/").status_code == 405
    assert 'href="/deferred/"' in client.get("/").content.decode()


def test_what_is_private_is_shown_after_login_only(client: Client, admin_client: Client) -> None:
    private = RepositoryFactory(private=True)
    DeferredItemFactory(slug="secret-recipe", recipe=private)
    DeferredItemFactory(slug="secret-source", source_repository=private, source_path="DEFERRED.md", source="x")
    DeferredItemFactory(slug="secret-lost", source_path="DEFERRED.md", source="y")
    DeferredItemFactory(slug="known")
    assert {item.slug for item in DeferredItem.objects.all() if not item.private} == {"known"}
    assert {item.slug for item in registry.public(DeferredItem.objects.all())} == {"known"}
    page = Client().get("/deferred/").content.decode()
    assert "known" in page and "secret-" not in page and private.name not in page
    assert admin_client.get("/deferred/").content.decode().count("secret-") >= 3


def test_the_page_asks_the_database_as_often_for_many_as_for_one(client: Client, django_assert_max_num_queries: Any) -> None:
    for _ in range(12):
        DeferredItemFactory()
    with django_assert_max_num_queries(6):
        client.get("/deferred/")


def test_in_the_admin_a_person_decides_whose_it_is(admin_client: Client) -> None:
    item, other = DeferredItemFactory(slug="a"), RepositoryFactory()
    address = f"/admin/runs/deferreditem/{item.pk}/change/"
    assert "Port the test of the login page." in admin_client.get(address).content.decode()
    admin_client.post(address, {"recipe": other.pk, "state": "closed"})
    assert (row().recipe, row().recipe_by, row().state) == (other, "hand", "open")
    assert admin_client.get("/admin/runs/deferreditem/").status_code == 200


def test_in_the_admin_only_what_is_not_ticked_is_opened_again(admin_client: Client) -> None:
    here = DeferredItemFactory(slug="here", state="closed", closed_commit="c" * 40, pull_url="https://x.example/1")
    there = DeferredItemFactory(slug="there", state="closed", ticked=True)
    admin_client.post("/admin/runs/deferreditem/", {"action": "reopen", "_selected_action": [here.pk, there.pk]})
    assert (row("here").state, row("here").closed_commit, row("here").pull_url) == ("open", "", "")
    assert row("there").state == "closed"


def test_sources_are_found_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = RepositoryFactory(owner="recipes", name="web")
    monkeypatch.chdir(tmp_path)
    assert find_source("recipes/web").repository == repository
    (tmp_path / "recipes" / "web").mkdir(parents=True)
    put(tmp_path / "recipes" / "web" / "DEFERRED.md", entry())
    assert find_source("recipes/web").path == str(tmp_path / "recipes" / "web" / "DEFERRED.md")
