"""What somebody who logged in with a forge sees and may do here: what the forge shows them, and what their comment could do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import transaction
from django.test import Client
from django.urls import reverse

from enrollment.fakeforge.faults import Fault
from enrollment.models import Forge, Repository
from enrollment.repositories import update_facts
from runs import approval
from runs.models import State, TestRun
from tests.factories import DeferredItemFactory, RepositoryFactory, TestRunFactory
from tests.signing_in import log_in, offer_logins
from tests.world import World

pytestmark = pytest.mark.slow(6)


@pytest.fixture(autouse=True)
def offered(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings.CC_CI, "base_url", "http://testserver")
    offer_logins(world)
    yield
    cache.clear()


@pytest.fixture
def private(world: World) -> TestRun:
    """A run of `recipes/web`, which is private, requested by alice's comment; failed."""
    return failed(world)


def failed(world: World, recipe: str = "recipes/web", *, private: bool = True, user: str = "alice", number: int = 1) -> TestRun:
    world.remote.set_private(recipe, private)
    row = Repository.objects.get(owner=recipe.partition("/")[0], name=recipe.partition("/")[2])
    update_facts(row, world.client())
    world.say(recipe, user=user, number=number)
    world.hear()
    run = TestRun.objects.latest("created_at")
    end(run)
    return run


def end(run: TestRun) -> None:
    TestRun.objects.filter(pk=run.pk).update(state=State.FAILED)
    run.refresh_from_db()


def pages(run: TestRun) -> list[str]:
    row = run.repository
    return [
        run.get_absolute_url(),
        reverse("run-log", args=[run.pk]),
        reverse("run-live", args=[run.pk]),
        reverse("recipe", args=[row.pk]),
        reverse("pull-request", args=[row.pk, 1]),
        reverse("test-history", args=[row.pk]),
    ]


def press(browser: Client, run: TestRun, name: str = "again") -> tuple[int, str]:
    """The status of a button's answer, and what is then told."""
    answer = browser.post(reverse("run-act", args=[run.pk, name]))
    if answer.status_code != 302:
        return answer.status_code, answer.content.decode()
    return 302, browser.get(answer["Location"]).content.decode().partition("callout")[2].partition("</div>")[0]


def anew(world: World) -> None:
    """What was answered a minute ago is asked again."""
    cache.clear()
    world.forge.refresh_from_db()


# --- seeing


def test_a_member_sees_what_the_forge_shows_them_and_nobody_else_does(world: World, private: TestRun) -> None:
    alice, mallory = log_in(world, "alice"), log_in(world, "mallory")
    for page in pages(private):
        assert alice.get(page).status_code == 200, page
        assert mallory.get(page).status_code in (403, 404), page
        assert Client().get(page).status_code in (302, 403), page
    for page in ("/", "/runs/"):
        assert private.get_absolute_url() in alice.get(page).content.decode() or "recipes/web" in alice.get(page).content.decode()
        assert "recipes/web" not in mallory.get(page).content.decode()


def test_they_see_only_what_they_may_see(world: World, private: TestRun) -> None:
    world.add_recipe("hidden", "root")  # of the administrator, whose bot may read it
    world.remote.set_private("root/hidden")
    world.remote.add_collaborator("root/hidden", world.bot, "read")
    world.enroll("root/hidden")
    hidden = failed(world, "root/hidden", user="root")
    alice = log_in(world, "alice")
    assert alice.get(hidden.get_absolute_url()).status_code == 404
    text = alice.get("/runs/").content.decode()
    assert private.get_absolute_url() in text and hidden.get_absolute_url() not in text
    world.remote.add_collaborator("root/hidden", world.alice, "read")
    anew(world)
    assert alice.get(hidden.get_absolute_url()).status_code == 200


def test_a_repository_of_another_forge_with_the_same_number_is_not_theirs(world: World, private: TestRun) -> None:
    other = TestRunFactory(repository=RepositoryFactory(private=True, forge_repo_id=private.repository.forge_repo_id))
    assert log_in(world, "alice").get(other.get_absolute_url()).status_code == 404


def test_deferred_tests_of_private_recipes_are_shown_to_who_may_see_them(world: World, private: TestRun) -> None:
    DeferredItemFactory(recipe=private.repository, what="Port the secret thing.", source_path="")
    DeferredItemFactory(recipe=RepositoryFactory(private=True), what="Port the other thing.", source_path="")
    seen = log_in(world, "alice").get("/deferred/").content.decode()
    assert "Port the secret thing." in seen and "Port the other thing." not in seen
    assert "secret thing" not in log_in(world, "mallory").get("/deferred/").content.decode()


def test_answers_are_used_for_a_minute_and_asked_again_after_it(world: World, private: TestRun) -> None:
    alice = log_in(world, "alice")
    alice.get(private.get_absolute_url())
    before = len(world.remote.requests)
    alice.get(private.get_absolute_url())
    alice.get("/runs/")
    assert len(world.remote.requests) == before
    world.remote.remove_member(world.org, world.alice)
    anew(world)
    assert alice.get(private.get_absolute_url()).status_code == 404


def test_an_answer_that_is_not_a_documented_one_shows_nothing(world: World, private: TestRun) -> None:
    alice = log_in(world, "alice")
    for fault in (Fault(500), Fault(status=200, body="[]"), Fault(status=200, body="{}"), Fault(401), Fault(close="before")):
        cache.clear()
        world.remote.faults = lambda request, fault=fault: fault if request.path == "/api/v1/repos/search" else None
        assert alice.get(private.get_absolute_url()).status_code == 404, fault
        assert "recipes/web" not in alice.get("/runs/").content.decode()


def test_a_slow_forge_does_not_hold_up_a_page_for_as_long_as_it_has_something_to_say(
    world: World, private: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer comes in time, but there are many: a few such pages would take all threads of the web server."""
    world.add_recipe("wiki")
    world.enroll("recipes/wiki")
    public = failed(world, "recipes/wiki", private=False)
    alice, mallory = log_in(world, "alice"), log_in(world, "mallory")
    monkeypatch.setattr(settings.CC_CI, "http_timeout", 0.3)
    asked: list[str] = []

    def fault(request: Any) -> Fault:
        asked.append(request.path)
        if not request.path.endswith("/search"):
            return Fault(delay=0.2)
        owner = {"id": 9, "login": "somebody"}
        rows = [{"id": 1000 * len(asked) + at, "name": "x", "private": True, "owner": owner} for at in range(50)]
        return Fault(200, json.dumps({"ok": True, "data": rows}), delay=0.2)

    world.remote.faults = fault
    assert mallory.get(private.get_absolute_url()).status_code == 404
    assert 1 <= len(asked) <= 4 and {path.rpartition("/")[2] for path in asked} == {"search"}
    asked.clear()
    assert 'class="buttons"' not in mallory.get(public.get_absolute_url()).content.decode()
    assert 1 <= len(asked) <= 4
    asked.clear()
    assert alice.post(reverse("run-act", args=[public.pk, "again"])).status_code == 302
    assert TestRun.objects.count() == 2 and 1 <= len([path for path in asked if not path.endswith("/search")]) <= 6


def test_what_a_forge_calls_public_in_a_list_of_private_ones_is_no_yes(world: World, private: TestRun) -> None:
    other = RepositoryFactory(forge=world.forge, private=True)
    alice = log_in(world, "alice")
    row = {"id": other.forge_repo_id, "name": "x", "private": False}
    world.remote.faults = lambda request: (
        Fault(body=f'{{"ok": true, "data": [{str(row).replace(chr(39), chr(34)).replace("False", "false")}]}}')
        if request.path == "/api/v1/repos/search"
        else None
    )
    assert alice.get(reverse("recipe", args=[other.pk])).status_code == 404


def test_a_session_counts_for_nothing_without_what_it_rests_on(
    world: World, private: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = log_in(world, "alice")
    forge, repository = Forge.objects.filter(pk=world.forge.pk), Repository.objects.filter(pk=private.repository_id)
    for how in (
        lambda: forge.update(oauth_client_id=""),
        lambda: forge.update(enabled=False),
        lambda: forge.update(url="http://127.0.0.1:9"),
        lambda: forge.update(block=[world.alice.id]),
        lambda: repository.update(block=[world.alice.id]),
        lambda: User.objects.filter(forge_account__login="alice").delete(),
        lambda: monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="]),
        lambda: (monkeypatch.undo(), world.remote.revoke_tokens("alice")),
    ):
        cache.clear()
        cookies = alice.cookies.copy()
        with transaction.atomic():
            how()
            assert alice.get(private.get_absolute_url()).status_code in (302, 404)
            assert press(alice, private)[0] in (302, 404)
            assert TestRun.objects.count() == 1
            transaction.set_rollback(True)
        alice.cookies = cookies


# --- doing


def test_a_maintainer_runs_again_by_the_button(world: World, private: TestRun) -> None:
    alice = log_in(world, "alice")
    assert 'class="buttons"' in alice.get(private.get_absolute_url()).content.decode()
    assert "is queued" in press(alice, private)[1]
    again = TestRun.objects.get(retry_of=private)
    assert (again.requested_by, again.asked_by, again.trusted, again.sha) == ("alice", world.alice.id, True, private.sha)
    assert again.state == State.QUEUED and again.pull_request == private.pull_request
    assert again.pk in approval.ask_again()


def test_two_clicks_are_one_run(world: World, private: TestRun) -> None:
    """As two comments are."""
    alice = log_in(world, "alice")
    assert [press(alice, private)[1].count("is queued") for _ in range(2)] == [1, 1]
    again = TestRun.objects.get(retry_of=private)
    press(alice, private, "again-with-extra-tests")
    assert TestRun.objects.filter(retry_of=private).count() == 2, "that is more"
    end(again)
    press(alice, private)
    assert TestRun.objects.filter(retry_of=private).count() == 3, "the first has ended"


def test_a_maintainer_cancels_by_the_button(world: World, private: TestRun) -> None:
    TestRun.objects.filter(pk=private.pk).update(state=State.QUEUED)
    assert "is being stopped" in press(log_in(world, "alice"), private, "cancel")[1]
    private.refresh_from_db()
    assert private.state == State.CANCELLED and "alice" in private.events.get(kind=State.CANCELLED).text


def test_nobody_else_has_buttons(world: World) -> None:
    public = failed(world, private=False)
    world.remote.add_user("reader")
    for browser in (log_in(world, "mallory"), log_in(world, "reader"), Client()):
        assert 'class="buttons"' not in browser.get(public.get_absolute_url()).content.decode()
        for name in ("again", "again-with-extra-tests", "cancel", "approve"):
            assert press(browser, public, name)[0] in (302, 403)
    assert TestRun.objects.count() == 1


def test_who_may_read_a_private_repository_may_not_therefore_act(world: World, private: TestRun) -> None:
    Forge.objects.update(collaborators_may_ask=False)
    reader = world.remote.add_user("reader")
    world.remote.add_collaborator("recipes/web", reader, "read")
    browser = log_in(world, "reader")
    assert browser.get(private.get_absolute_url()).status_code == 200
    assert press(browser, private)[0] == 403


def test_an_account_of_another_forge_does_nothing_here(world: World) -> None:
    public = failed(world, private=False)
    other = TestRunFactory(repository=RepositoryFactory(owner="recipes", owner_id=world.alice.id), failed=True)
    assert press(log_in(world, "alice"), other)[0] == 403
    assert press(log_in(world, "alice"), public)[0] == 302


def test_without_a_pull_request_there_is_no_comment_and_no_button(world: World) -> None:
    row = Repository.objects.get()
    run = TestRunFactory(repository=row, pull_request=None, failed=True)
    alice = log_in(world, "alice")
    assert 'class="buttons"' not in alice.get(run.get_absolute_url()).content.decode()
    assert press(alice, run)[0] == 403


def test_whoever_has_left_the_organisation_meanwhile_does_nothing_more(world: World) -> None:
    """The page still shows the buttons, for a minute; what they do is asked anew."""
    public = failed(world, private=False)
    alice = log_in(world, "alice")
    assert 'class="buttons"' in alice.get(public.get_absolute_url()).content.decode()
    world.remote.remove_member(world.org, world.alice)
    assert press(alice, public)[0] == 403
    assert TestRun.objects.count() == 1


def test_a_run_that_waited_is_not_started_for_somebody_who_left(
    world: World, private: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    press(log_in(world, "alice"), private)
    again = TestRun.objects.get(retry_of=private)
    monkeypatch.setattr(approval, "_is_old", lambda run: True)
    assert again.pk in approval.ask_again()
    world.remote.remove_member(world.org, world.alice)
    assert approval.ask_again() == set()
    again.refresh_from_db()
    assert again.state == State.CANCELLED and "alice" in again.reason


def test_a_renamed_person_acts_under_the_new_name_and_the_old_name_gets_nothing(world: World) -> None:
    public = failed(world, private=False)
    alice = log_in(world, "alice")
    world.remote.rename_user("alice", "alicia")
    world.remote.rename_user("mallory", "alice")
    imposter = log_in(world, "alice")
    assert press(imposter, public)[0] == 403
    assert "is queued" in press(alice, public)[1]
    assert TestRun.objects.get(retry_of=public).requested_by == "alicia"


def test_a_closed_pull_request_is_repeated_by_nobody(world: World, private: TestRun) -> None:
    world.remote.close_pull(world.remote.issue("recipes/web", 1))
    assert "the pull request is closed" in press(log_in(world, "alice"), private)[1]
    assert TestRun.objects.count() == 1


def test_code_that_is_trusted_no_longer_is_not_trusted_by_a_button(world: World) -> None:
    world.remote.add_member(world.org, world.mallory, "write")
    pull = world.add_fork_pull("recipes/web")
    run = failed(world, private=False, number=pull.number)
    assert run.trusted
    world.remote.remove_member(world.org, world.mallory)
    assert "is queued" in press(log_in(world, "alice"), run)[1]
    assert not TestRun.objects.get(retry_of=run).trusted


def test_a_stranger_is_not_approved_by_themselves_but_by_a_maintainer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Forge.objects.update(strangers_await_approval=True)
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", user="mallory", number=pull.number)
    world.hear()
    run = TestRun.objects.get()
    assert run.state == State.AWAITING_APPROVAL
    assert press(log_in(world, "mallory"), run, "approve")[0] == 403
    alice = log_in(world, "alice")
    assert f"for {run.short_sha} only" in press(alice, run, "approve")[1]
    run.refresh_from_db()
    given = run.events.get(kind=approval.APPROVED)
    assert run.state == State.QUEUED and not run.trusted
    assert (given.data["id"], given.data["login"]) == (world.alice.id, "alice")
    # It counts as her comment would: for as long as she may approve.
    monkeypatch.setattr(approval, "_is_old", lambda run: True)
    assert run.pk in approval.ask_again()
    Forge.objects.update(block=[world.alice.id])
    assert approval.ask_again() == set()
    run.refresh_from_db()
    assert run.state == State.CANCELLED


def test_an_account_here_of_that_name_makes_no_approval_valid(world: World) -> None:
    """The approval of a person at the forge is theirs, not that of an operator with the same name."""
    Forge.objects.update(strangers_await_approval=True)
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", user="mallory", number=pull.number)
    world.hear()
    run = TestRun.objects.get()
    User.objects.create_superuser("alice")
    press(log_in(world, "alice"), run, "approve")
    Forge.objects.update(block=[world.alice.id])
    assert approval.approved_commits(run.pull_request, world.client()) == ()


def test_a_pushed_head_is_not_approved_by_a_page_from_before(world: World) -> None:
    Forge.objects.update(strangers_await_approval=True)
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", user="mallory", number=pull.number)
    world.hear()
    run = TestRun.objects.get()
    world.remote.push("mallory/web", "patch", {"evil.txt": "x\n"}, "More", "mallory")
    assert "has changed since" in press(log_in(world, "alice"), run, "approve")[1]
    run.refresh_from_db()
    assert run.state == State.AWAITING_APPROVAL


def test_nothing_is_done_when_the_forge_does_not_say(world: World) -> None:
    public = failed(world, private=False)
    alice = log_in(world, "alice")
    somebody = f'{{"id": {world.admin.id}, "login": "root"}}'
    for path in ("/user", "/repositories/1", "/users/alice", "/orgs/recipes/members/alice"):
        for fault in (Fault(500), Fault(status=200, body="{}"), Fault(status=200, body='{"id": 1}'), Fault(200, somebody)):
            world.remote.faults = lambda request, path=path, fault=fault: fault if request.path == f"/api/v1{path}" else None
            press(alice, public)
            assert TestRun.objects.count() == 1, (path, fault)


def test_a_form_of_another_site_presses_no_button(world: World, private: TestRun) -> None:
    alice = log_in(world, "alice")
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = alice.cookies
    assert strict.post(reverse("run-act", args=[private.pk, "again"])).status_code == 403
    assert TestRun.objects.count() == 1
