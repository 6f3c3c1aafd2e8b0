"""The page of deferred tests in a real browser: it fits, is legible, and opens by keyboard."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.conftest import Watched
from tests.browser.test_pages import CONTRAST
from tests.factories import DeferredItemFactory, TestRunFactory

Look = Callable[..., Watched]


def entries() -> None:
    recipe = TestRunFactory(passed=True).repository
    DeferredItemFactory(slug="ghost-create-a-post", recipe=recipe, recipe_by="what")
    DeferredItemFactory(
        slug="unbroken-" + "x" * 190, what="y" * 900 + " <b>bold</b>", why="z" * 300, recipe=None, filed_by="w" * 200
    )
    DeferredItemFactory(
        slug="matrix-synapse-purge",
        recipe=recipe,
        state="closed",
        closed_commit="c" * 40,
        closed_test="extra/" + "a" * 200 + ".py",
        proof=recipe.runs.get(),
        pull_url="https://git.example.org/recipes/registry/pulls/1",
    )
    DeferredItemFactory(slug="gone", vanished_at="2026-01-01T00:00:00Z", recipe__name="r" * 200)


@pytest.mark.parametrize(
    ("phone", "dark"), [(True, False), (True, True), (False, False)], ids=["phone", "phone, dark", "desktop"]
)
def test_the_page_fits_and_is_legible(look: Look, phone: bool, dark: bool) -> None:
    entries()
    page = look(phone=phone, dark=dark).go("/deferred/")
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= (390 if phone else 1280)
        found = page.evaluate(CONTRAST, 4.5)
        assert found["seen"] > 5 and found["bad"] == []
        page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")


def test_an_entry_opens_by_keyboard(look: Look) -> None:
    DeferredItemFactory(why="Needs hands.")
    page = look().go("/deferred/")
    reason = page.get_by_text("Needs hands.")
    assert not reason.is_visible()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert reason.is_visible()
