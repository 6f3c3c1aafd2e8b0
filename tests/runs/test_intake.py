"""A comment becomes exactly one run, one reply or one action."""

from __future__ import annotations

import threading

import pytest
from django.conf import settings
from django.db import connection, connections
from django.utils import timezone

from enrollment import comments
from enrollment.fakeforge.faults import Fault, Request
from enrollment.models import Comment, PullRequest, Repository
from runs import intake
from runs.executors.local import request_for
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import Report, State, TestRun
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.2)]


def outcome(world: World, remote_id: int) -> Comment:
    return Comment.objects.get(forge=world.forge, forge_comment_id=remote_id)


def test_a_members_comment_becomes_a_run_of_the_head(world: World) -> None:
    said = world.say("recipes/web")
    world.hear()
    run = TestRun.objects.get()
    assert run.sha == world.remote.pull("recipes/web", 1).head_sha
    assert run.ref == "refs/pull/1/head"
    assert run.state == State.QUEUED
    assert run.trusted
    assert run.requested_by == "alice"
    assert world.reactions(said) == ["eyes"]
    row = outcome(world, said.id)
    assert row.outcome == "run"
    assert "alice" in row.reason
    assert "is a member of the organisation" in row.reason
    assert row.facts["asker"]["id"] == world.alice.id


def test_the_commit_is_pinned_when_the_comment_is_handled(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    before = TestRun.objects.get().sha
    world.remote.push("recipes/web", "change", {"more.txt": "later"}, "Later", world.alice)
    assert TestRun.objects.get().sha == before
    assert world.remote.pull("recipes/web", 1).head_sha != before


def test_seen_ten_times_is_one_run(world: World) -> None:
    said = world.say("recipes/web")
    for _ in range(10):
        world.poll()
    pk = outcome(world, said.id).pk
    for _ in range(10):
        assert intake.handle(pk) == Comment.Outcome.RUN
    assert TestRun.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_five_workers_at_the_same_moment_make_one_run(world: World) -> None:
    world.say("recipes/web")
    world.poll()
    pk = Comment.objects.get().pk
    gate = threading.Barrier(5)
    faults: list[BaseException] = []

    def worker() -> None:
        try:
            gate.wait()
            intake.handle(pk)
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=worker) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert TestRun.objects.count() == 1
    assert Report.objects.filter(kind="reaction").count() == 1
    assert connection.vendor in ("sqlite", "postgresql")


def test_an_outsider_gets_one_short_reply_and_no_run(world: World) -> None:
    for _ in range(3):
        world.say("recipes/web", user="mallory")
    world.hear()
    assert not TestRun.objects.exists()
    replies = world.own_comments("recipes/web")
    assert len(replies) == 1
    assert "@mallory" in replies[0]
    assert sorted(Comment.objects.values_list("outcome", flat=True)) == ["ignored", "ignored", "reply"]
    for row in Comment.objects.all():
        assert row.facts["asker"]["id"] == world.mallory.id
        assert "is neither owner, member" in row.reason


def test_an_outsider_gets_silence_where_that_is_wished(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "outsiders", "silent")
    said = world.say("recipes/web", user="mallory")
    world.hear()
    assert world.own_comments("recipes/web") == []
    assert outcome(world, said.id).outcome == "ignored"


def test_a_bot_starts_nothing_and_hears_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = world.remote.add_user("renovate")
    world.remote.add_member(world.org, robot, "write")
    monkeypatch.setattr(settings.CC_CI, "bots", ["Renovate"])
    said = world.say("recipes/web", user="renovate")
    world.hear()
    assert outcome(world, said.id).outcome == "ignored"
    assert "is a bot" in outcome(world, said.id).reason
    assert world.own_comments("recipes/web") == []


def test_our_own_words_start_nothing(world: World) -> None:
    world.say("recipes/web", user="cc-ci")
    world.hear()
    assert not Comment.objects.exists()


def test_a_comment_that_was_edited_before_it_was_seen_starts_nothing(world: World) -> None:
    said = world.say("recipes/web", "Nice.")
    world.clock.move(seconds=5)
    world.remote.edit_comment(said, "!testme")
    world.hear()
    assert not TestRun.objects.exists()
    assert outcome(world, said.id).outcome == "reply"
    assert "new comment" in world.own_comments("recipes/web")[0]


@pytest.mark.parametrize("state", ["COMMENT", "APPROVED", "REQUEST_CHANGES"])
def test_a_command_in_a_review_counts_as_in_a_comment(world: World, state: str) -> None:
    carol = world.remote.add_user("carol")  # nobody may approve or reject their own
    world.remote.add_member(world.org, carol, "write")
    said = world.remote.review("recipes/web", 1, carol, "Looks fine.\r\n!testme", state)
    world.hear()
    run = TestRun.objects.get()
    assert (run.sha, run.trusted, run.requested_by) == (world.remote.pull("recipes/web", 1).head_sha, True, "carol")
    row = outcome(world, said.id)
    assert (row.outcome, row.facts["asker"]["id"], row.pull_request.number) == ("run", carol.id, 1)
    assert row.html_url.endswith(f"/recipes/web/pulls/1#issuecomment-{said.id}")
    (answer,) = world.own_comments("recipes/web")
    assert "is queued" in answer
    # Seen again, by polling and as a net, it is the same.
    Repository.objects.update(net_due_at=None)
    PullRequest.objects.update(comments_wanted_since=row.created_at)
    world.hear()
    assert (TestRun.objects.count(), Comment.objects.count()) == (1, 1)


def test_the_net_finds_a_review_that_the_search_did_not_tell_of(world: World) -> None:
    said = world.remote.review("recipes/web", 1, world.alice, "!testme")
    world.remote.faults = lambda request: Fault(body="[]") if request.path.endswith("/issues/search") else None
    world.hear()
    assert not Comment.objects.exists()
    Repository.objects.update(net_due_at=None)
    world.hear()
    assert outcome(world, said.id).via == "review"
    assert TestRun.objects.count() == 1


@pytest.mark.parametrize("state", ["PENDING", "DISMISSED", "REQUEST_REVIEW"])
def test_a_review_that_does_not_stand_asks_for_nothing(world: World, state: str) -> None:
    world.remote.review("recipes/web", 1, world.alice, "!testme", state)
    world.say("recipes/web", "Fine.")
    world.hear()
    assert not Comment.objects.exists()


def test_an_outsiders_review_starts_nothing(world: World) -> None:
    world.remote.review("recipes/web", 1, world.mallory, "!testme")
    world.hear()
    assert "@mallory" in world.own_comments("recipes/web")[0]
    assert not TestRun.objects.exists()


def test_a_review_that_was_begun_long_before_it_was_submitted_counts_from_then(world: World) -> None:
    begun = world.remote.review("recipes/web", 1, world.alice, "", "PENDING")
    world.hear()
    assert not Comment.objects.exists()
    for _ in range(6):
        world.clock.move(minutes=10)
        world.poll()
    said = world.remote.submit_review(begun, "Some remarks on lines.\n!testme")
    world.hear()
    row = outcome(world, said.id)
    assert (row.outcome, row.edited) == ("run", False), row.reason
    assert TestRun.objects.get().requested_by == "alice"


def test_a_review_that_was_begun_before_the_enrolment_counts(world: World) -> None:
    begun = world.remote.review("recipes/web", 1, world.alice, "", "PENDING")
    world.clock.move(minutes=10)
    Repository.objects.update(enrolled_at=world.clock())
    world.clock.move(minutes=10)
    said = world.remote.submit_review(begun, "!testme")
    world.hear()
    if world.remote.features.newer_fields:  # an older forge tells only when it was begun
        assert outcome(world, said.id).outcome == "run"
    else:
        assert not Comment.objects.exists()


def test_a_review_whose_entry_was_deleted_hides_no_other(world: World) -> None:
    world.remote.delete_comment(world.remote.review("recipes/web", 1, world.mallory, "!testme now"))
    said = world.remote.review("recipes/web", 1, world.alice, "!testme")
    world.hear()
    assert outcome(world, said.id).outcome == "run"
    pull = PullRequest.objects.get()
    assert (pull.comments_wanted_since, pull.comments_failures) == (None, 0)
    assert Comment.objects.count() == 1


@pytest.mark.parametrize(
    "fault",
    [Fault(status=404), Fault(body="{}"), Fault(body='[{"id": 7, "state": null}]')],
    ids=["not found", "garbage", "an odd row"],
)
def test_what_is_odd_about_one_pull_request_stops_no_other(world: World, fault: Fault) -> None:
    odd = world.remote.review("recipes/web", 1, world.alice, "!testme")
    world.clock.move(seconds=2)
    world.remote.push("recipes/web", "more", {"more.txt": "more\n"}, "More", world.alice)
    other = world.remote.open_pull("recipes/web", "recipes/web", "more", world.alice)
    world.remote.review("recipes/web", other.number, world.alice, "Hm.")
    world.remote.comment("recipes/web", 1, world.alice, "The last that changed.")
    said = world.remote.review("recipes/web", other.number, world.alice, "!testme")
    world.remote.comment("recipes/web", 1, world.alice, "Again.")
    row = Repository.objects.get()
    before = row.net_cursor
    empty = Fault(body="[]")

    def faults(request: Request) -> Fault | None:
        if request.path.endswith("/issues/search"):
            return empty
        return fault if request.path.endswith("/pulls/1/reviews") else None

    world.remote.faults = faults
    Repository.objects.update(net_due_at=None)
    world.clock.move(minutes=10)
    world.hear()
    assert [found.forge_comment_id for found in Comment.objects.all()] == [said.id]
    row.refresh_from_db()
    assert row.net_cursor is not None and (before is None or row.net_cursor > before)
    pull = PullRequest.objects.get(number=1)
    assert pull.comments_wanted_since and pull.comments_failures == 1 and pull.comments_next_try_at
    world.remote.faults = lambda request: empty if request.path.endswith("/issues/search") else None
    world.clock.move(minutes=10)
    PullRequest.objects.update(comments_next_try_at=None)
    world.hear()
    assert outcome(world, odd.id).outcome == "run"
    pull.refresh_from_db()
    assert (pull.comments_wanted_since, pull.comments_failures) == (None, 0)


def test_an_idle_look_asks_for_no_review_and_a_change_for_one_listing(world: World) -> None:
    world.say("recipes/web", "Fine.")
    world.poll()
    world.clock.move(minutes=10)
    world.poll()
    before = len(world.own_requests())
    world.poll()
    assert [request.path for request in world.own_requests()[before:]] == ["/api/v1/repos/issues/search"]
    before = len(world.own_requests())
    world.say("recipes/web", "Fine.")
    world.poll()
    paths = [request.path.rpartition("/")[2] for request in world.own_requests()[before:]]
    assert paths == ["search", "comments", "reviews"]


def test_what_is_nearly_a_command_gets_one_reply(world: World) -> None:
    world.say("recipes/web", "**!testme**")
    world.hear()
    assert not TestRun.objects.exists()
    (answer,) = world.own_comments("recipes/web")
    assert "at the start of a line" in answer and "\n!testme\n" in answer


def test_a_comment_that_is_edited_later_starts_no_second_run(world: World) -> None:
    said = world.say("recipes/web")
    world.hear()
    world.clock.move(seconds=5)
    world.remote.edit_comment(said, "!testme --extra-tests")
    world.hear()
    assert TestRun.objects.count() == 1


def test_a_problem_gets_one_reply_with_the_nearest_form(world: World) -> None:
    world.say("recipes/web", "!testme --stages instal")
    world.hear()
    assert not TestRun.objects.exists()
    (reply,) = world.own_comments("recipes/web")
    assert "!testme --stages install" in reply


def test_help_and_status(world: World) -> None:
    world.say("recipes/web", "!testme help")
    world.hear()
    world.say("recipes/web", "!testme status")
    world.hear()
    world.say("recipes/web", "!testme")
    world.hear()
    world.say("recipes/web", "!testme status")
    world.hear()
    texts = world.own_comments("recipes/web")
    assert "| `!testme cancel` |" in texts[0]
    assert "There are no runs yet" in texts[1]
    assert "is queued" in texts[3]


def test_the_same_question_twice_joins_the_run(world: World) -> None:
    world.say("recipes/web")
    second = world.say("recipes/web")
    world.hear()
    assert TestRun.objects.count() == 1
    assert sorted(Comment.objects.values_list("outcome", flat=True)) == ["joined", "run"]
    assert world.reactions(second) == ["eyes"]
    assert TestRun.objects.get().events.filter(kind="joined").count() == 1


def test_another_question_supersedes_a_run_that_waits(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    world.say("recipes/web", "!testme --extra-tests")
    world.hear()
    old, new = TestRun.objects.order_by("created_at")
    assert old.state == State.SUPERSEDED
    assert new.state == State.QUEUED
    assert "extra" in new.stages


def test_cancel_ends_a_run_that_waits(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    said = world.say("recipes/web", "!testme cancel")
    world.hear()
    assert TestRun.objects.get().state == State.CANCELLED
    assert outcome(world, said.id).outcome == "acted"
    assert world.reactions(said) == ["eyes"]


def squat(world: World) -> None:
    """The organisation gets another name, and mallory takes the old one, which is the one that we know."""
    row = Repository.objects.get()
    world.remote.rename_user("recipes", "cookbook")
    other = world.remote.add_org("recipes", world.mallory)
    world.remote.add_member(other, world.bot, "read")  # who is in it shows
    assert (row.owner, row.owner_id) == ("recipes", world.org.id)


def stored_under_the_old_name(world: World, body: str, user: str) -> Comment:
    """A comment as a delivery brings it: nobody has asked the forge for the repository's name since."""
    said = world.say("cookbook/web", body, user)
    pull = PullRequest.objects.get_or_create(repository=Repository.objects.get(), number=1)[0]
    comments.store(pull.repository, world.client().pull_comments("cookbook", "web", 1, said.created), Comment.Via.DELIVERY, pull)
    return outcome(world, said.id)


@pytest.mark.parametrize("body", ["!testme cancel", "!testme status", "!testme help", "!testme", "!testme retry"])
def test_who_took_the_organisations_old_name_may_nothing(world: World, body: str) -> None:
    world.say("recipes/web")
    world.hear()
    run = TestRun.objects.get()
    squat(world)
    row = stored_under_the_old_name(world, body, "mallory")
    assert intake.handle(row.pk) == "reply"
    row.refresh_from_db()
    assert "is neither owner, member" in row.reason
    run.refresh_from_db()
    assert (run.state, TestRun.objects.count()) == (State.QUEUED, 1)
    assert Repository.objects.get().owner == "cookbook"


@pytest.mark.parametrize(
    ("body", "comes_to"),
    [("!testme cancel", "acted"), ("!testme status", "reply"), ("!testme help", "reply"), ("!testme", "joined")],
)
def test_who_is_in_the_organisation_is_known_under_its_new_name(world: World, body: str, comes_to: str) -> None:
    world.say("recipes/web")
    world.hear()
    squat(world)
    row = stored_under_the_old_name(world, body, "alice")
    assert intake.handle(row.pk) == comes_to
    row.refresh_from_db()
    assert "neither owner" not in row.reason


def test_another_owner_while_it_is_asked_who_asks_is_asked_about_again(world: World) -> None:
    said = world.say("recipes/web")
    world.poll()
    eve = world.remote.add_user("eve")

    def plan(request: Request) -> Fault | None:
        if request.path.endswith("/pulls/1") and world.remote.tables.repos[1].owner != "eve":
            world.remote.transfer("recipes/web", eve)
        return None

    world.remote.faults = plan
    row = outcome(world, said.id)
    assert intake.handle(row.pk) is None
    row.refresh_from_db()
    assert "has just changed owner" in row.last_error
    world.remote.faults = None
    assert intake.handle(row.pk) == "reply"
    assert not TestRun.objects.exists()


def test_cancel_and_retry_without_a_run_say_so(world: World) -> None:
    world.say("recipes/web", "!testme cancel")
    world.say("recipes/web", "!testme retry")
    world.hear()
    texts = world.own_comments("recipes/web")
    assert len(texts) == 2
    assert "no run to cancel" in texts[0]
    assert "no run to repeat" in texts[1]


def test_the_version_to_upgrade_from_makes_another_run(world: World) -> None:
    world.say("recipes/web", "!testme --from 1.0.0+1")
    world.hear()
    first = TestRun.objects.get()
    assert (first.upgrade_from, request_for(first).upgrade_from) == ("1.0.0+1", "1.0.0+1")
    world.say("recipes/web", "!testme --from 1.0.0+1")
    world.hear()
    assert TestRun.objects.get() == first  # joined
    world.say("recipes/web", "!testme --from 0.9.0+1")
    world.hear()
    first.refresh_from_db()
    assert first.state == State.SUPERSEDED
    assert TestRun.objects.exclude(pk=first.pk).get().upgrade_from == "0.9.0+1"


def test_retry_all_takes_the_same_commit_and_all_stages(world: World) -> None:
    world.say("recipes/web", "!testme --stages install")
    world.hear()
    TestRun.objects.update(state=State.FAILED)
    world.remote.push("recipes/web", "change", {"more.txt": "later"}, "Later", world.alice)
    world.say("recipes/web", "!testme retry all")
    world.hear()
    old, new = TestRun.objects.order_by("created_at")
    assert new.sha == old.sha != world.remote.pull("recipes/web", 1).head_sha
    assert new.stages == list(DEFAULT_STAGES)
    assert new.retry_of == old


def test_a_closed_pull_request_is_not_tested(world: World) -> None:
    world.say("recipes/web")
    world.remote.close_pull(world.remote.pull("recipes/web", 1))
    world.hear()
    assert not TestRun.objects.exists()
    assert "closed" in world.own_comments("recipes/web")[0]


# --- strangers' code


@pytest.mark.parametrize("world", ["1.15"], indirect=True)
def test_strange_code_needs_a_commit_where_the_forge_keeps_no_timeline(world: World) -> None:
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", number=pull.number)
    world.hear()
    assert not TestRun.objects.exists()
    (reply,) = world.own_comments("recipes/web", pull.number)
    assert f"!testme {pull.head_sha}" in reply
    assert f"/recipes/web/pulls/{pull.number}/commits/{pull.head_sha}" in reply
    # The line that it gives works.
    world.say("recipes/web", f"!testme {pull.head_sha}", number=pull.number)
    world.hear()
    run = TestRun.objects.get()
    assert run.sha == pull.head_sha
    assert not run.trusted


def test_a_commit_that_is_none_of_the_pull_requests_is_refused(world: World) -> None:
    pull = world.add_fork_pull("recipes/web")
    base = world.remote.pull("recipes/web", pull.number).base_sha
    world.say("recipes/web", f"!testme {base}", number=pull.number)
    world.hear()
    assert not TestRun.objects.exists()
    assert "is not a commit of this pull request" in world.own_comments("recipes/web", pull.number)[0]


def test_an_earlier_commit_of_the_pull_request_may_be_named(world: World) -> None:
    earlier = world.remote.pull("recipes/web", 1).head_sha
    world.remote.push("recipes/web", "change", {"more.txt": "later"}, "Later", world.alice)
    world.say("recipes/web", f"!testme {earlier[:7]}")
    world.hear()
    assert TestRun.objects.get().sha == earlier


@pytest.mark.parametrize("version", ["1.22", "13.0.0+gitea-1.22.0"])
def test_the_timeline_can_prove_that_nothing_was_pushed(db: None, tmp_path, monkeypatch, version: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, version)
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    pull = world.add_fork_pull("recipes/web")
    world.clock.move(seconds=10)
    world.say("recipes/web", number=pull.number)
    world.hear()
    run = TestRun.objects.get()
    assert run.sha == pull.head_sha
    assert not run.trusted
    # And that something was.
    run.delete()
    world.clock.move(seconds=10)
    world.say("recipes/web", "!testme --stages install", number=pull.number)
    world.clock.move(seconds=10)
    fork = next(row for row in world.remote.tables.repos.values() if row.owner == "mallory")
    world.remote.push(fork, "patch", {"evil.txt": "pushed at the worst moment"}, "Evil", world.mallory)
    world.hear()
    assert not TestRun.objects.exists()
    assert "!testme" in world.own_comments("recipes/web", pull.number)[-1]
    world.close()


def test_code_of_a_deleted_fork_counts_as_strange(world: World) -> None:
    pull = world.add_fork_pull("recipes/web")
    fork = next(row for row in world.remote.tables.repos.values() if row.owner == "mallory")
    world.remote.delete_repo(fork)
    world.say("recipes/web", number=pull.number)
    world.hear()
    assert not TestRun.objects.exists()


def test_a_members_fork_is_trusted(world: World) -> None:
    pull = world.add_fork_pull("recipes/web", "alice")
    world.say("recipes/web", number=pull.number)
    world.hear()
    assert TestRun.objects.get().trusted


# --- a forge in trouble


def test_a_forge_that_fails_meanwhile_loses_nothing(world: World) -> None:
    said = world.say("recipes/web")
    world.poll()
    world.remote.faults = lambda request: Fault(status=500)
    pk = outcome(world, said.id).pk
    assert intake.handle(pk) is None
    row = outcome(world, said.id)
    assert row.tries == 1
    assert row.next_try_at
    assert "500" in row.last_error
    world.remote.faults = None
    Comment.objects.update(next_try_at=timezone.now(), seen_at=timezone.now() - timezone.timedelta(minutes=1))
    assert intake.sweep() == 1
    assert TestRun.objects.count() == 1


def test_the_sweep_finds_what_a_lost_signal_left(world: World) -> None:
    world.say("recipes/web")
    world.poll()
    Comment.objects.update(seen_at=timezone.now() - timezone.timedelta(minutes=1))
    assert intake.sweep() == 1
    assert intake.sweep() == 0
    assert TestRun.objects.count() == 1


def test_one_odd_comment_does_not_stop_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.say("recipes/web"), world.say("recipes/web", "!testme --extra-tests")
    world.poll()
    odd = outcome(world, first.id).pk
    handle = intake.handle

    def sometimes(number: int) -> object:
        if number == odd:
            raise RuntimeError("a fault of our own")
        return handle(number)

    monkeypatch.setattr(intake, "handle", sometimes)
    Comment.objects.update(seen_at=timezone.now() - timezone.timedelta(minutes=1))
    intake.sweep()
    assert outcome(world, second.id).outcome == "run"
    assert "a fault of our own" in outcome(world, first.id).last_error


def test_after_three_days_a_comment_is_let_go(world: World) -> None:
    said = world.say("recipes/web")
    world.poll()
    world.remote.faults = lambda request: Fault(status=500)
    Comment.objects.update(tries=intake.MAX_TRIES - 1)
    assert intake.handle(outcome(world, said.id).pk) == Comment.Outcome.IGNORED
    assert "could not be asked" in outcome(world, said.id).reason


def test_a_repository_that_turned_private_is_known_as_such(world: World) -> None:
    world.remote.set_private("recipes/web")
    world.say("recipes/web")
    world.hear()
    assert TestRun.objects.get().repository.private
