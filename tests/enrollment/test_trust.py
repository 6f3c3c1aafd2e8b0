"""Who may ask: the decision as a table, and each source of trust by user id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from enrollment import tasks
from enrollment.access import authorization
from enrollment.access.authorization import NOT_ASKED, Code, Facts, Person, decide
from enrollment.fakeforge.faults import Fault
from enrollment.forges.base import User
from enrollment.models import Comment, Repository
from runs import approval
from runs.models import TestRun
from tests.world import World

HEAD, OLDER, ALIKE = "a" * 40, "abc1234" + "0" * 33, "abc1234" + "1" * 33
MEMBER = Person(3, "alice", is_member=True)
STRANGER = Person(4, "mallory")
BRANCH, FORK, PUSHED = Code("branch"), Code("fork", "mallory/web", STRANGER), Code("agit")
OWN = Facts(MEMBER, MEMBER, BRANCH, head_sha=HEAD, commits=(HEAD, OLDER))
STRANGE = Facts(MEMBER, STRANGER, FORK, head_sha=HEAD, commits=(HEAD, OLDER))


@pytest.mark.parametrize(
    ("facts", "sha", "refusal", "words"),
    [
        (OWN, HEAD, "", "alice (user 3) is a member of the organisation"),
        (replace(OWN, asker=Person(3, "alice", is_owner=True)), HEAD, "", "owns the repository"),
        (replace(OWN, asker=Person(3, "alice", is_collaborator=True)), HEAD, "", "is a collaborator"),
        (replace(OWN, asker=Person(3, "alice", is_allowed=True)), HEAD, "", "is on the allow-list"),
        (replace(OWN, asker=STRANGER), "", "outsider", "mallory (user 4) is neither owner, member"),
        # No right helps cc-ci itself, or another bot.
        (replace(OWN, asker=Person(2, "cc-ci", is_self=True, is_member=True)), "", "nothing", "is cc-ci itself"),
        (replace(OWN, asker=Person(9, "renovate", is_bot=True, is_owner=True)), "", "nothing", "is a bot"),
        # A stranger may not ask for their own code, with or without a commit named.
        (replace(STRANGE, asker=STRANGER), "", "outsider", "neither"),
        (replace(STRANGE, asker=STRANGER, wanted_sha=HEAD), "", "outsider", "neither"),
        # Code from a branch of the repository itself, or from a trusted person's own fork, is no strange code.
        (replace(STRANGE, code=BRANCH), HEAD, "", "member"),
        (replace(STRANGE, author=MEMBER, code=Code("fork", "alice/web", MEMBER)), HEAD, "", "member"),
        (replace(STRANGE, author=MEMBER, code=PUSHED), HEAD, "", "member"),
        # Of a fork the author and the owner count, and of all else nobody.
        (
            replace(STRANGE, author=MEMBER),
            "",
            "needs_sha",
            "from the fork mallory/web; not trusted: mallory (user 4), who is neither owner",
        ),
        (
            replace(STRANGE, code=Code("fork", "alice/web", MEMBER)),
            "",
            "needs_sha",
            "from the fork alice/web; not trusted: mallory (user 4)",
        ),
        (replace(STRANGE, author=MEMBER, code=Code("fork", "alice/web")), "", "needs_sha", "from the fork alice/web"),
        (
            replace(STRANGE, code=PUSHED),
            "",
            "needs_sha",
            "by a push without a branch (AGit); not trusted: mallory (user 4), who is neither",
        ),
        (replace(STRANGE, author=MEMBER, code=Code()), "", "needs_sha", "from an unknown source"),
        *((replace(OWN, code=replace(code, doubt="who knows")), "", "needs_sha", "who knows") for code in (BRANCH, FORK, PUSHED)),
        # A bot's fork is, whatever rights the bot has.
        (replace(STRANGE, author=Person(9, "renovate", is_bot=True, is_member=True)), "", "needs_sha", "who is a bot"),
        # Strange code: a commit named, or a proof that nothing was pushed since.
        (STRANGE, "", "needs_sha", "does not say when it was pushed"),
        (replace(STRANGE, pushed_after_comment=True), "", "needs_sha", "something was pushed since the comment"),
        (replace(STRANGE, pushed_after_comment=False), HEAD, "", "the fork mallory/web; not trusted: mallory (user 4)"),
        (replace(STRANGE, wanted_sha=HEAD), HEAD, "", "named the commit"),
        (replace(STRANGE, wanted_sha=OLDER), OLDER, "", "named the commit"),
        # So few digits that another commit may be made with the same ones: as if it were not named.
        (replace(STRANGE, wanted_sha=HEAD[:10]), "", "needs_sha", "does not say when it was pushed"),
        (replace(STRANGE, wanted_sha=OLDER[:-1], pushed_after_comment=True), "", "needs_sha", "something was pushed since"),
        (replace(STRANGE, wanted_sha=OLDER[:7], pushed_after_comment=False), OLDER, "", "the timeline shows no push since"),
        (replace(STRANGE, wanted_sha=HEAD, pushed_after_comment=True), HEAD, "", "named the commit"),
        # Commits that are none of this pull request, or could be several.
        (replace(OWN, wanted_sha="f" * 40), "", "unknown_sha", "is not a commit of this pull request"),
        (replace(STRANGE, wanted_sha="f" * 7), "", "unknown_sha", "is not a commit of this pull request"),
        (replace(OWN, wanted_sha=HEAD[:6]), "", "ambiguous_sha", "too short"),
        (replace(OWN, wanted_sha="f"), "", "ambiguous_sha", "too short"),
        (replace(OWN, wanted_sha="abc1234", commits=(OLDER, ALIKE)), "", "ambiguous_sha", "too short"),
        (replace(OWN, wanted_sha="abc12340", commits=(OLDER, ALIKE)), OLDER, "", "named the commit"),
        # The head counts also where it was pushed after the list of commits was read.
        (replace(STRANGE, wanted_sha=HEAD, commits=()), HEAD, "", "named the commit"),
    ],
)
def test_decide(facts: Facts, sha: str, refusal: str, words: str) -> None:
    decision = decide(facts)
    assert (decision.allowed, decision.refusal) == (bool(sha), refusal)
    if refusal == "needs_sha":  # it says which one is to be named
        sha = OLDER if facts.wanted_sha and OLDER.startswith(facts.wanted_sha) else HEAD
    assert decision.sha == sha
    assert words in decision.reason


@pytest.mark.parametrize(
    ("facts", "sha", "trusts"),
    [
        (OWN, HEAD, True),
        (OWN, OLDER, True),
        (replace(OWN, asker=STRANGER), HEAD, False),
        (STRANGE, HEAD, False),
        (replace(OWN, code=Code("fork", "alice/web", MEMBER)), OLDER, True),
        (replace(OWN, code=NOT_ASKED), HEAD, False),
        (replace(OWN, code=PUSHED), HEAD, True),
        (replace(OWN, code=PUSHED), OLDER, False),  # who pushed the head says nothing of what was there before
        (replace(STRANGE, code=PUSHED), HEAD, False),
    ],
)
def test_which_commit_runs_as_a_trusted_one(facts: Facts, sha: str, trusts: bool) -> None:
    assert facts.trusts(sha) is trusts


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("abc1234", True),
        ("ABC1234", True),
        ("a" * 64, True),
        ("abc123", False),
        ("a" * 65, False),
        ("abc123g", False),
        ("", False),
    ],
)
def test_what_could_name_a_commit(text: str, is_one: bool) -> None:
    assert authorization.is_sha(text) is is_one


def test_the_facts_can_be_kept_with_the_comment() -> None:
    facts = STRANGE.as_json()
    assert facts["asker"] == {
        "id": 3,
        "login": "alice",
        "is_self": False,
        "is_bot": False,
        "is_blocked": False,
        "is_owner": False,
        "is_member": True,
        "is_team": False,
        "is_collaborator": False,
        "is_allowed": False,
        "unseen": (),
    }
    assert facts["commits"] == 2
    assert (facts["code"]["kind"], facts["code"]["owner"]["id"]) == ("fork", 4)


# --- asking the forge


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """Version 1.15, or another by indirect parametrisation; bob has a repository of his own."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.15"))
    world.connect()
    world.remote.add_user("bob")
    world.add_recipe("web")
    world.add_recipe("site", "bob")
    world.enroll("recipes/web", "bob/site")
    yield world
    world.remote.faults = None
    world.close()


newer = pytest.mark.parametrize("world", ["1.22", "13.0.0+gitea-1.22.0"], indirect=True)
every_version = pytest.mark.parametrize("world", ["1.15", "1.22", "13.0.0+gitea-1.22.0"], indirect=True)


def ask(world: World, login: str, recipe: str = "recipes/web", *, user_id: int | None = None) -> Person:
    """The standing of somebody who commented under this name, now."""
    row = Repository.objects.get(name=recipe.partition("/")[2])
    user_id = world.remote.user(login).id if user_id is None else user_id
    return authorization.person(User(user_id, login), row, world.client())


@every_version
@pytest.mark.parametrize(
    ("login", "recipe", "fact"),
    [
        ("alice", "recipes/web", "is_member"),
        ("bob", "bob/site", "is_owner"),
        ("cc-ci", "recipes/web", "is_self"),
        ("mallory", "recipes/web", ""),
        ("alice", "bob/site", ""),
        ("bob", "recipes/web", ""),
        ("root", "bob/site", ""),  # a site admin is nobody here
    ],
)
def test_who_stands_how(world: World, login: str, recipe: str, fact: str) -> None:
    person = ask(world, login, recipe)
    assert [name for name, held in vars(person).items() if held is True] == ([fact] if fact else [])
    assert person.trusted is (fact not in ("", "is_self"))


def test_the_allow_list_of_a_forge_and_of_a_repository(world: World) -> None:
    web = Repository.objects.get(name="web")
    web.allow = [world.mallory.id]
    web.save()
    assert ask(world, "mallory").is_allowed
    assert not ask(world, "mallory", "bob/site").trusted
    world.forge.allow = [world.mallory.id]
    world.forge.save()
    assert ask(world, "mallory", "bob/site").is_allowed


def test_a_known_bot_is_never_trusted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "bots", ["Alice"])
    person = ask(world, "alice")
    assert person.is_bot
    assert not person.trusted


@newer
def test_collaborators_where_the_token_sees_them(world: World) -> None:
    world.remote.add_collaborator("recipes/web", world.mallory)
    assert ask(world, "mallory").is_collaborator
    assert not ask(world, "mallory", "bob/site").trusted


@newer
@pytest.mark.parametrize(("right", "may"), [("read", False), ("write", True), ("admin", True)])
def test_a_collaborator_who_may_only_read_is_not_trusted_where_the_server_tells(world: World, right: str, may: bool) -> None:
    world.remote.add_collaborator("recipes/web", world.mallory, right)
    assert ask(world, "mallory").trusted, "a token that only reads cannot see what they may"
    world.remote.add_collaborator("recipes/web", world.bot, "admin")
    assert ask(world, "mallory").trusted is may


@pytest.mark.parametrize("world", ["1.15"], indirect=True)
def test_collaborators_where_it_does_not_are_refused(world: World) -> None:
    world.remote.add_collaborator("recipes/web", world.mallory)
    assert not ask(world, "mallory").trusted


@every_version
def test_a_member_who_leaves_is_trusted_no_longer(world: World) -> None:
    assert ask(world, "alice").trusted
    world.remote.remove_member(world.org, world.alice)
    assert not ask(world, "alice").trusted


@every_version
def test_a_name_taken_by_somebody_else_gives_nothing(world: World) -> None:
    """A comment of mallory's stays mallory's when alice's name has come to somebody who is a member, and the other way."""
    world.remote.rename_user("mallory", "gone")
    newcomer = world.remote.add_user("mallory")
    world.remote.add_member(world.org, newcomer, "write")
    assert ask(world, "mallory").trusted
    assert not ask(world, "mallory", user_id=world.mallory.id).trusted


@every_version
def test_who_takes_a_members_old_name_is_no_member(world: World) -> None:
    world.remote.rename_user("alice", "alicia")
    impostor = world.remote.add_user("alice")
    assert not ask(world, "alice", user_id=impostor.id).trusted
    assert ask(world, "alicia").is_member


@every_version
def test_a_member_who_was_renamed_is_found_by_the_old_name(world: World) -> None:
    alice = world.alice.id
    world.remote.rename_user("alice", "alicia")
    assert ask(world, "alice", user_id=alice).is_member


@every_version
def test_the_allow_list_goes_with_the_person_not_the_name(world: World) -> None:
    world.forge.allow = [world.mallory.id]
    world.forge.save()
    world.remote.rename_user("mallory", "malory")
    impostor = world.remote.add_user("mallory")
    assert ask(world, "malory").is_allowed
    assert not ask(world, "mallory", user_id=impostor.id).trusted


def test_an_owner_who_gave_the_repository_away_may_ask_no_longer(world: World) -> None:
    assert ask(world, "bob", "bob/site").is_owner
    world.remote.transfer("bob/site", "recipes")
    world.say("recipes/site", "!testme", "bob")
    world.poll()
    assert Comment.objects.get().pull_request.repository.full_name == "recipes/site"
    assert not ask(world, "bob", "recipes/site").trusted
    assert ask(world, "alice", "recipes/site").is_member


def test_the_ghost_of_a_deleted_account_is_nobody(world: World) -> None:
    assert not ask(world, "Ghost", user_id=-1).trusted
    ghost = world.remote.add_user("Ghost")
    world.remote.add_member(world.org, ghost)
    assert not ask(world, "Ghost", user_id=-1).trusted


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.parametrize("part", ["/users/", "/members/"])
def test_a_forge_that_does_not_answer_decides_nothing(world: World, status: int, part: str) -> None:
    world.remote.faults = lambda request: Fault(status=status) if part in request.path else None
    with pytest.raises(Exception, match=str(status)):
        ask(world, "alice")


FORGEJO = "13.0.0+gitea-1.22.0"
READING = ("read:repository", "read:issue", "write:issue")


@pytest.mark.parametrize("world", ["1.22", FORGEJO], indirect=True)
@pytest.mark.parametrize(
    ("scopes", "words"),
    [(("read:user",), "read:organization"), (("read:organization",), "read:user")],
)
def test_what_the_token_may_not_see_is_no_outage(world: World, scopes: tuple[str, ...], words: str) -> None:
    """Whoever may be trusted by other facts is; a member is not, and is told once why. Nothing waits for days."""
    world.forge.token = world.remote.add_token("cc-ci", *READING, *scopes)
    world.forge.allow = [world.mallory.id]
    world.forge.save()
    assert ask(world, "mallory").is_allowed
    assert ask(world, "bob", "bob/site").is_owner
    world.remote.add_collaborator("recipes/web", "bob")
    assert ask(world, "bob").is_collaborator is (words == "read:organization")
    alice = ask(world, "alice")
    assert not alice.trusted
    assert words in alice.standing() and "as far as cc-ci can see" in alice.standing()
    for number in range(2):
        world.say("recipes/web", "!testme" + " --extra-tests" * number, "alice")
        world.hear()
    first, second = Comment.objects.order_by("created_at", "forge_comment_id")
    assert (first.outcome, second.outcome) == ("reply", "ignored")
    assert words in first.reason and words in first.facts["asker"]["unseen"][0]
    (reply,) = world.own_comments("recipes/web")
    assert "cannot check who may start runs" in reply and "cc-ci doctor" in reply
    assert not TestRun.objects.exists()


@newer
def test_who_was_let_go_and_cannot_be_seen_any_more_starts_nothing(world: World) -> None:
    world.say("recipes/web", "!testme", "alice")
    world.hear()
    run = TestRun.objects.get()
    world.forge.token = world.remote.add_token("cc-ci", *READING, "read:user")
    world.forge.save()
    run.events.update(at=timezone.now() - timedelta(minutes=5))
    assert approval.ask_again() == set()
    run.refresh_from_db()
    assert run.state == "cancelled" and "read:organization" in run.reason


def test_an_outsider_is_an_outsider_where_all_can_be_seen(world: World) -> None:
    world.say("recipes/web", "!testme", "mallory")
    world.hear()
    (reply,) = world.own_comments("recipes/web")
    assert "can start runs" in reply


@every_version
def test_a_team_that_cannot_be_seen_is_named(world: World) -> None:
    world.remote.add_to_team("recipes", "web", "alice")
    Repository.objects.update(members_may_ask="off", team="web")
    assert "the team web of recipes (it does not exist, or cc-ci is not in it" in ask(world, "alice").standing()
    world.remote.add_to_team("recipes", "web", "cc-ci")
    assert ask(world, "alice").is_team
    assert ask(world, "mallory").unseen == ()
    # A person's own repositories have no teams, so nothing is hidden there.
    tasks.see_to_rights()
    assert ask(world, "mallory", "bob/site").unseen == ()


def test_no_more_is_asked_than_needed(world: World) -> None:
    world.forge.allow = [world.mallory.id]
    world.forge.save()
    before = len(world.own_requests())
    ask(world, "mallory")
    ask(world, "bob", "bob/site")
    ask(world, "cc-ci")
    assert len(world.own_requests()) == before


def test_what_was_decided_and_why_is_stored_with_the_comment(world: World) -> None:
    world.say("recipes/web", "!testme", "mallory")
    world.hear()
    row = Comment.objects.get()
    assert row.outcome == "reply"
    assert f"mallory (user {world.mallory.id}) is neither owner, member nor collaborator, and not on the allow-list" in row.reason
