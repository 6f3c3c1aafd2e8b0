"""A maintainer's way, in the browser: from a private run's address through the forge's login to the button that retries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import cache

from enrollment.models import Repository
from enrollment.repositories import update_facts
from runs.models import State, TestRun
from tests.signing_in import offer_logins
from tests.world import World


@pytest.fixture
def failed(world: World, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestRun]:
    """A failed run of a private recipe, which alice requested."""
    monkeypatch.setattr(settings.CC_CI, "base_url", live_server.url)
    offer_logins(world)
    world.remote.set_private("recipes/web")
    update_facts(Repository.objects.get(), world.client())
    world.say("recipes/web")
    world.hear()
    TestRun.objects.update(state=State.FAILED, reason="1 of 3 tests of the stage custom failed.")
    yield TestRun.objects.get()
    cache.clear()


def test_a_maintainer_logs_in_with_the_forge_and_retries_a_private_run(
    look: Callable[..., Any], world: World, failed: TestRun
) -> None:
    watched = look(phone=True)
    page = watched.go(failed.get_absolute_url())
    assert page.inner_text("h1") == "Log in"
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Log in with sandbox").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{world.server.url}/login/oauth/authorize**")
    page.select_option("select[name=user]", "alice")
    page.get_by_role("button", name="Authorize").click()
    page.wait_for_url(f"{watched.origin}{failed.get_absolute_url()}")
    page.get_by_role("button", name="Run again", exact=True).click()
    page.wait_for_selector("text=is queued")
    again = TestRun.objects.get(retry_of=failed)
    assert page.url.endswith(again.get_absolute_url())
    assert (again.state, again.requested_by, again.asked_by) == (State.QUEUED, "alice", world.alice.id)
    page.get_by_role("button", name="Log out").click()
    assert watched.go(again.get_absolute_url()).inner_text("h1") == "Log in"
    watched.outside[:] = [url for url in watched.outside if not url.startswith(world.server.url)]
