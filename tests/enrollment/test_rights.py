"""Each row of gitea-api.md's table of rights, against the fake forge; and what cc-ci makes of what it sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db.models import F, Min
from django.test import Client
from django.utils import timezone

from controlplane.cli import Exit
from controlplane.registry import registry
from enrollment import checks, permission_report, tasks
from enrollment.fakeforge.faults import Fault, Request
from enrollment.fakeforge.features import VERSIONS
from enrollment.forge_access import permissions
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import Forbidden, ForgeError, NotFound, Unauthorized
from enrollment.forges.gitea import client as gitea
from enrollment.forges.gitea.client import GiteaClient
from enrollment.forges.gitea.kind import GITEA as KIND
from enrollment.models import Forge, Repository, Right
from enrollment.repositories import add_forge
from enrollment.webhooks.reconcile import reconcile
from tests.world import EVERY_VERSION, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

GITEA, FORGEJO = "1.15", "13.0.0+gitea-1.22.0"
LONG_AGO = timezone.now() - timedelta(days=3650)
ACTORS = ("reader", "writer", "admin", "anonymous")
#: What happened, by the words of the table.
WORDS: dict[type[ForgeError] | None, str] = {None: "yes", Forbidden: "403", NotFound: "404", Unauthorized: "401"}


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """The bot reads; wendy writes by a team, ada administers the repository by a right of her own, olga owns the organisation."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(gitea, "wait_random_exponential", lambda *args, **more: lambda state: 0)
    world = World(tmp_path, getattr(request, "param", GITEA))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    for name, right in (("wendy", "write"), ("ada", "read"), ("olga", "owner")):
        world.remote.add_user(name)
        world.remote.add_member(world.org, name, right)
    world.remote.add_collaborator("recipes/web", "ada", "admin")
    yield world
    world.remote.faults = None
    world.close()


both = pytest.mark.parametrize("world", [GITEA, FORGEJO], indirect=True)
every_version = pytest.mark.parametrize("world", EVERY_VERSION, indirect=True)


def client_of(world: World, actor: str) -> GiteaClient:
    login = {"reader": "cc-ci", "writer": "wendy", "admin": "ada", "owner": "olga", "anonymous": ""}[actor]
    return GiteaClient(world.server.url, world.remote.add_token(login) if login else "", user_agent="cc-ci/test")


def what(act: Callable[[], object]) -> str:
    try:
        found = act()
    except (Forbidden, NotFound, Unauthorized) as error:
        return WORDS[type(error)]
    return "yes" if found is not False else "no"


def row(world: World, act: Callable[[GiteaClient], object], actors: tuple[str, ...] = ACTORS) -> list[str]:
    return [what(lambda actor=actor: act(client_of(world, actor))) for actor in actors]  # type: ignore[misc]


# --- the table, row by row


@every_version
def test_all_may_read_what_is_public(world: World) -> None:
    world.say("recipes/web")
    assert row(world, lambda client: list(client.changed_pulls(LONG_AGO, "recipes"))) == ["yes"] * 4
    assert row(world, lambda client: list(client.pull_comments("recipes", "web", 1, None))) == ["yes"] * 4
    assert row(world, lambda client: client.pull("recipes", "web", 1)) == ["yes"] * 4


@every_version
def test_who_reads_may_comment_edit_and_react(world: World) -> None:
    said = world.say("recipes/web")

    def comment_and_edit(client: GiteaClient) -> None:
        client.edit_comment("recipes", "web", client.post_comment("recipes", "web", 1, "Hello").id, "Hello again")

    assert row(world, comment_and_edit) == ["yes", "yes", "yes", "401"]
    assert row(world, lambda client: client.react("recipes", "web", said.id, "eyes")) == ["yes", "yes", "yes", "401"]


@every_version
def test_a_commit_status_needs_the_right_to_write_on_newer_ones(world: World) -> None:
    sha = world.remote.pull("recipes/web", 1).head_sha
    status = {"state": "success", "context": "x", "description": "", "target_url": "https://ci.example.org"}
    reader = "yes" if world.remote.version == GITEA else "403"
    found = row(world, lambda client: client.set_status("recipes", "web", sha, **status))  # type: ignore[arg-type]
    assert found == [reader, "yes", "yes", "401"]


@pytest.mark.parametrize("world", list(VERSIONS), indirect=True)
def test_members_see_members_and_others_public_ones(world: World) -> None:
    newest = world.remote.version.startswith("1.26")
    guest = "401" if newest else "no"
    assert row(world, lambda client: client.is_member("recipes", "alice")) == ["yes", "yes", "yes", guest]
    assert row(world, lambda client: client.is_member("recipes", "mallory")) == ["no", "no", "no", guest]
    world.remote.remove_member(world.org, world.bot)
    assert row(world, lambda client: client.is_member("recipes", "alice"), ("reader",)) == ["no"]
    world.remote.add_member(world.org, world.alice, "write", public=True)
    assert row(world, lambda client: client.is_member("recipes", "alice"), ("reader", "anonymous")) == [
        "yes",
        guest if newest else "yes",
    ]


@both
def test_collaborators_show_to_admins_and_on_newer_ones_to_all_who_read(world: World) -> None:
    world.remote.add_collaborator("recipes/web", world.mallory, "read")
    old = world.remote.version == GITEA
    found = [client_of(world, actor).is_collaborator("recipes", "web", "mallory") for actor in ("reader", "writer", "admin")]
    # Who administers the repository sees that this one may only read.
    assert found == ([None, None, True] if old else [True, True, False])
    assert row(world, lambda client: client.is_collaborator("recipes", "web", "mallory"), ("anonymous",)) == ["401"]


@every_version
def test_hooks_of_a_repository_are_for_its_admins(world: World) -> None:
    assert row(world, lambda client: list(client.hooks("recipes", "web"))) == ["403", "403", "yes", "401"]
    url, events = "https://ci.example.org/hooks/1/", ["issue_comment"]
    made = row(world, lambda client: client.create_hook("recipes", "web", url=url, secret="s", events=events))
    assert made == ["403", "403", "yes", "401"]


@every_version
def test_hooks_of_an_organisation_are_for_its_owners(world: World) -> None:
    actors = (*ACTORS, "owner")
    assert row(world, lambda client: list(client.hooks("recipes", "")), actors) == ["403", "403", "403", "401", "yes"]
    url, events = "https://ci.example.org/hooks/1/", ["issue_comment"]
    made = row(world, lambda client: client.create_hook("recipes", "", url=url, secret="s", events=events), actors)
    assert made == ["403", "403", "403", "401", "yes"]


# --- what is seen


def see(world: World, login: str = "cc-ci", *scopes: str) -> dict[str, str]:
    """The rights of somebody's token, as the scheduled task sees them."""
    user = world.remote.user(login)
    Forge.objects.update(bot_id=user.id, bot_login=user.login)
    forge = Forge.objects.get()
    forge.token = world.remote.add_token(login, *scopes)
    forge.save()
    Right.objects.all().delete()
    Forge.objects.update(abilities_at=timezone.now(), abilities_version=world.remote.version)
    tasks.see_to_rights()
    return {right.name: right.held for right in Right.objects.all()}


def test_nothing_is_written_to_find_out(world: World) -> None:
    see(world)
    assert {request.method for request in world.own_requests()} == {"GET"}


@every_version
@pytest.mark.parametrize(
    ("login", "held"),
    [
        ("cc-ci", {"read", "membership"}),
        ("wendy", {"read", "membership", "push"}),
        ("ada", {"read", "membership", "push", "admin"}),
        ("olga", {"read", "membership", "push", "admin"}),
        ("root", {"read", "membership", "push", "admin", "site_admin"}),
        ("mallory", {"read"}),
    ],
)
def test_what_a_token_may_do_is_seen(world: World, login: str, held: set[str]) -> None:
    seen = see(world, login)
    assert {name for name, word in seen.items() if word == "yes"} == held
    # Who may list webhooks may perhaps write them; with a token that has scopes, only writing tells.
    listed = {"ada": {"hooks"}, "olga": {"hooks", "org_hooks"}, "root": {"hooks", "org_hooks"}}.get(login, set())
    assert {name for name, word in seen.items() if word == "unknown"} == listed
    assert {name for name, word in seen.items() if word == "no"} == {
        "read", "membership", "push", "admin", "hooks", "org_hooks", "site_admin"
    } - held - listed  # fmt: skip
    right = Right.objects.get(name="read")
    assert right.evidence and right.at > timezone.now() - permissions.REPOSITORY_EVERY


@pytest.mark.parametrize("world", [FORGEJO], indirect=True)
def test_scopes_are_seen_by_what_is_refused(world: World) -> None:
    seen = see(world, "olga", "read:repository", "read:user", "read:organization")
    assert (seen["read"], seen["membership"]) == ("no", "yes")
    assert "read:issue" in Right.objects.get(name="read").evidence
    seen = see(world, "olga", "read:repository", "read:user", "read:organization", "read:issue")
    assert (seen["read"], seen["hooks"]) == ("yes", "unknown"), "a list that is answered is no right to write"


READING = ("read:repository", "read:user", "read:organization", "read:issue")


@pytest.mark.parametrize("world", [FORGEJO], indirect=True)
def test_a_webhook_that_is_refused_shows_that_the_token_may_not(world: World) -> None:
    see(world, "olga", *READING)
    world.poll()
    Repository.objects.update(webhooks="on")
    assert permission_report.lacking(Right.objects.all(), KIND) == frozenset()
    reconcile(Forge.objects.get(), apply=True)
    for _ in range(2):
        seen = {row.name: row for row in Right.objects.all()}
        assert (seen["hooks"].held, seen["org_hooks"].held) == ("no", "no")
        assert seen["hooks"].evidence.startswith("refused when it was tried: POST /repos/recipes/web/hooks: 403")
        # A list that is answered takes nothing of that back.
        permissions.refresh(Forge.objects.get(), client_for(Forge.objects.get()), everything=True)
    (finding,) = [found for found in checks.check_forges() if found.name.endswith("permissions") and found.level != "ok"]
    assert "webhooks of the repository: no" in finding.text and "write:repository" in finding.text
    assert "create a token with the scope write:repository" in finding.fix and "cc-ci forge add" in finding.fix
    # What the token was seen to lack is no right that is too much, though the account has it.
    Repository.objects.update(webhooks="off")
    assert [found.text for found in checks.check_forges() if found.name.endswith("permissions") and found.level != "ok"] == []
    lines = {line.name: line for line in permission_report.lines_of(Forge.objects.get())}
    assert lines["admin"].counts == {"yes": 1} and "lack the scope write:repository" in lines["admin"].meaning
    # With another token all that was tried is to be seen anew.
    add_forge(world.server.url, world.remote.add_token("olga"))
    assert not Right.objects.filter(name__in=("hooks", "org_hooks")).exists()


@pytest.mark.parametrize("world", [FORGEJO], indirect=True)
def test_members_that_the_token_may_not_see_are_an_error_where_a_policy_lets_them_ask(world: World) -> None:
    world.poll()
    seen = see(world, "cc-ci", "read:repository", "read:issue", "read:user")
    assert (seen["membership"], seen["read"]) == ("no", "yes")
    assert "read:organization" in Right.objects.get(name="membership").evidence
    (finding,) = [found for found in checks.check_forges() if found.level != "ok"]
    assert finding.level == "error" and "Nobody is recognised as a member" in finding.text
    assert "a token with the scope read:organization" in finding.fix
    Repository.objects.update(members_may_ask="off")
    assert [found for found in checks.check_forges() if found.level != "ok"] == []
    Repository.objects.update(team="web")
    assert [found.level for found in checks.check_forges() if "Nobody" in found.text] == ["error"]


@both
@pytest.mark.parametrize(("login", "name"), [("ada", "hooks"), ("olga", "org_hooks")])
def test_a_webhook_that_is_written_shows_that_the_token_may(world: World, login: str, name: str) -> None:
    see(world, login)
    world.poll()
    Repository.objects.update(webhooks="on")
    reconcile(Forge.objects.get(), apply=True)
    permissions.refresh(Forge.objects.get(), client_for(Forge.objects.get()), everything=True)
    right = Right.objects.get(name=name)
    assert (right.held, right.evidence) == ("yes", "done when it was tried")


def test_the_scope_that_each_right_needs_is_told(world: World, admin_client: Client) -> None:
    see(world)
    out = StringIO()
    call_command("permissions", stdout=out)
    page = admin_client.get(f"/admin/enrollment/forge/{world.forge.pk}/change/").content.decode()
    for name, spec in permissions.PERMISSIONS.items():
        assert KIND.scopes[name]
        assert f"[{KIND.scopes[name]}]" in out.getvalue()
        assert f"{spec.text} ({KIND.scopes[name]})" in page
    assert permission_report.NOT_THE_SCOPES in out.getvalue() and permission_report.NOT_THE_SCOPES in page


def test_a_repository_that_cannot_be_read(world: World) -> None:
    world.remote.set_private("recipes/web")
    world.remote.remove_member(world.org, world.bot)
    assert see(world)["read"] == "no"
    assert "404" in Right.objects.get(name="read").evidence
    assert next(finding.level for finding in permission_report.findings(world.forge)) == "error"


def test_a_persons_repository_has_no_organisation(world: World) -> None:
    world.remote.add_user("bob")
    world.add_recipe("site", "bob")
    world.enroll("bob/site")
    see(world)
    assert Right.objects.get(owner="bob").held == "unknown"
    assert not Right.objects.filter(owner="bob", held="no").exists()


@both
def test_writing_shows_what_cannot_be_asked(world: World) -> None:
    see(world)
    world.say("recipes/web")
    world.hear()
    seen = {right.name: right.held for right in Right.objects.filter(repository__isnull=False)}
    assert (seen["react"], seen["comment"]) == ("yes", "yes")
    assert seen["status"] == ("yes" if world.remote.version == GITEA else "no")


@pytest.mark.parametrize("world", [FORGEJO], indirect=True)
def test_a_refused_comment_shows_the_scope_that_is_missing(world: World) -> None:
    see(world, "cc-ci", "read:repository", "read:issue", "read:user", "read:organization")
    world.say("recipes/web")
    world.hear()
    right = Right.objects.get(name="comment")
    assert (right.held, "write:issue" in right.evidence) == ("no", True)
    (finding,) = [found for found in permission_report.findings(Forge.objects.get()) if "write comments" in found.text]
    assert "no answer is posted" in finding.text


@pytest.mark.parametrize("before", ["yes", ""])
@pytest.mark.parametrize(
    ("path", "name", "command", "message"),
    [
        ("/issues/1/comments", "comment", "!testme help", "You cannot comment on a locked issue."),
        ("/reactions", "react", "!testme", "no permission to change reaction"),
    ],
)
def test_a_locked_conversation_is_no_missing_right(
    world: World, path: str, name: str, command: str, message: str, before: str
) -> None:
    if before:
        world.say("recipes/web", command)
        world.hear()
    refused: list[str] = []

    def locked(request: Request) -> Fault | None:
        if request.method != "POST" or not request.path.endswith(path):
            return None
        refused.append(request.path)
        return Fault(status=403, body=json.dumps({"message": message}))

    world.remote.faults = locked
    world.say("recipes/web", command)
    world.hear()
    assert refused
    assert [right.held for right in Right.objects.filter(name=name)] == ([before] if before else [])
    # Another refusal of the same is a right that is missing.
    world.remote.faults = lambda request: Fault(status=403) if request.path.endswith(path) and request.method == "POST" else None
    world.say("recipes/web", command)
    world.hear()
    assert Right.objects.get(name=name).held == "no"


def test_a_forge_that_does_not_answer_says_nothing_about_rights(world: World) -> None:
    see(world)
    Right.objects.update(due_at=LONG_AGO)
    world.remote.faults = lambda request: Fault(status=500)
    tasks.see_to_rights()
    assert Right.objects.get(name="read").held == "yes"


@pytest.mark.parametrize(
    ("broken", "name", "others"),
    [
        ("/orgs/recipes/hooks", "org_hooks", {"read", "push", "admin", "hooks", "membership", "site_admin"}),
        ("/orgs/recipes/members/cc-ci", "membership", {"read", "push", "admin", "hooks", "org_hooks", "site_admin"}),
        ("/repos/recipes/web/hooks", "hooks", {"read", "push", "admin", "membership", "org_hooks", "site_admin"}),
        ("/repos/recipes/web/issues/comments", "read", {"push", "admin", "hooks", "membership", "org_hooks", "site_admin"}),
        ("/user", "site_admin", {"read", "push", "admin", "hooks", "membership", "org_hooks"}),
    ],
)
def test_one_question_without_an_answer_hides_no_other(world: World, broken: str, name: str, others: set[str]) -> None:
    world.remote.faults = lambda request: Fault(status=500) if request.path == f"/api/v1{broken}" else None
    seen = see(world)
    assert seen.pop(name) == "unknown"
    assert {name for name, word in seen.items() if word != "unknown"} == others
    assert "no answer: " in Right.objects.get(name=name).evidence
    (finding,) = [found for found in permission_report.findings(Forge.objects.get()) if found.level == "warning"]
    assert permissions.PERMISSIONS[name].text in finding.text and "no answer" in finding.text
    world.remote.faults = None
    asked = len(world.own_requests())
    tasks.see_to_rights()
    assert f"/api/v1{broken}" not in [request.path for request in world.own_requests()[asked:] if broken != "/user"]
    Right.objects.filter(name__in=permissions.DUE_BY).update(due_at=F("due_at") - permissions.AGAIN_AFTER - timedelta(minutes=1))
    tasks.see_to_rights()
    assert Right.objects.get(name=name).held != "unknown"


def test_one_repository_without_an_answer_hides_no_other(world: World) -> None:
    world.add_recipe("other")
    world.enroll("recipes/other")
    number = Repository.objects.get(name="web").forge_repo_id
    world.remote.faults = lambda request: Fault(status=500) if request.path.endswith(f"/repositories/{number}") else None
    tasks.see_to_rights()
    assert Right.objects.get(name="read", repository__name="web").held == "unknown"
    assert Right.objects.get(name="read", repository__name="other").held == "yes"
    assert Right.objects.get(name="membership").held == "yes"


def test_what_was_seen_before_stays_where_nothing_is_answered(world: World) -> None:
    see(world)
    Right.objects.update(due_at=LONG_AGO)
    world.remote.faults = lambda request: Fault(status=500) if request.path.endswith("/issues/comments") else None
    for _ in range(2):
        Right.objects.filter(name="read").update(due_at=LONG_AGO)
        tasks.see_to_rights()
    right = Right.objects.get(name="read")
    assert (right.held, right.evidence.count("no answer")) == ("yes", 1)
    assert "500" in right.evidence


def test_what_was_seen_lately_is_not_asked_again(world: World) -> None:
    see(world)
    asked = len(world.own_requests())
    tasks.see_to_rights()
    assert [request.path for request in world.own_requests()[asked:]] == ["/api/v1/version", "/api/v1/user"]
    Right.objects.filter(repository__isnull=False).update(due_at=F("due_at") - permissions.REPOSITORY_EVERY)
    tasks.see_to_rights()
    assert len(world.own_requests()) == asked + 7


def test_a_repository_that_was_never_asked_about_comes_first(world: World) -> None:
    see(world)
    Right.objects.update(due_at=LONG_AGO)
    world.add_recipe("other")
    world.enroll("recipes/other")
    Right.objects.filter(repository__name="other").delete()
    asked = len(world.own_requests())
    tasks.see_to_rights()
    paths = [request.path for request in world.own_requests()[asked:]]
    other, web = (f"/api/v1/repositories/{Repository.objects.get(name=name).forge_repo_id}" for name in ("other", "web"))
    assert paths.index(other) < paths.index(web)


def test_when_it_was_seen_is_when_it_was_answered(world: World) -> None:
    begun = timezone.now()
    see(world)
    assert begun <= Right.objects.aggregate(at=Min("at"))["at"]
    Right.objects.update(at=LONG_AGO, due_at=LONG_AGO)
    world.remote.faults = lambda request: Fault(status=500) if request.path.endswith("/issues/comments") else None
    tasks.see_to_rights()
    at = dict(Right.objects.values_list("name", "at"))
    assert at.pop("read") == LONG_AGO, "it got no answer"
    assert begun <= min(at.values())


def test_a_bot_that_was_renamed_is_known_by_its_id(world: World) -> None:
    see(world)
    world.remote.rename_user("cc-ci", "robot")
    world.remote.add_user("cc-ci")  # the freed name is taken
    Right.objects.filter(name="membership").update(due_at=LONG_AGO)
    tasks.see_to_rights()
    right = Right.objects.get(name="membership")
    assert (right.held, right.evidence) == ("yes", "robot shows itself as a member of recipes")
    forge = Forge.objects.get()
    assert (forge.bot_id, forge.bot_login) == (world.bot.id, "robot")


def test_a_token_of_another_account_is_not_taken_for_ours(world: World) -> None:
    see(world)
    forge = Forge.objects.get()
    forge.token = world.remote.add_token("wendy")
    forge.save()
    assert "the token now belongs to wendy" in tasks.see_to_rights()
    forge = Forge.objects.get()
    assert (forge.bot_id, forge.bot_login) == (world.bot.id, "cc-ci")
    (finding,) = [found for found in checks.check_forges() if found.name == "forge sandbox token"]
    assert finding.level == "error" and "the token now belongs to wendy" in finding.text


# --- what people see


@pytest.mark.parametrize(
    ("login", "hooks_wanted", "warned"),
    [
        ("cc-ci", False, set()),
        ("cc-ci", True, {"hooks"}),
        ("wendy", False, {"push"}),
        ("ada", False, {"push", "admin"}),
        ("root", False, {"push", "admin", "site_admin"}),
        ("root", True, {"site_admin"}),
        ("wendy", True, {"push", "hooks"}),
        ("mallory", False, {"membership"}),
    ],
)
def test_warned_is_about_what_is_missing_and_what_is_too_much(
    world: World, login: str, hooks_wanted: bool, warned: set[str]
) -> None:
    see(world, login)
    lines = permission_report.table(Right.objects.all(), KIND, hooks_wanted=hooks_wanted)
    assert {line.name for line in lines if line.level != "ok"} == warned
    assert all(line.meaning for line in lines if line.level != "ok")


def test_every_right_says_what_is_lost_without_or_risked_with() -> None:
    assert all(bool(spec.without) != bool(spec.beyond) for spec in permissions.PERMISSIONS.values())
    assert set(permissions.SHOWN_BY.values()) <= set(permissions.PERMISSIONS)


def test_doctor_tells(world: World) -> None:
    world.poll()
    see(world, "root")
    found = [finding for finding in checks.check_forges() if finding.name == "forge sandbox permissions"]
    assert any("administer the whole forge" in finding.text for finding in found)
    assert any(finding.level == "ok" and "read yes" in finding.text for finding in found)


def test_doctor_prints_the_rights_as_a_table(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.poll()
    see(world)
    monkeypatch.setattr(registry, "checks", {"forges": checks.check_forges})
    out = StringIO()
    call_command("doctor", stdout=out)
    lines = out.getvalue().splitlines()
    (head,) = [
        line for line in lines if line.split() == ["permission", "seen", "scope", "of", "a", "token", "what", "it", "means"]
    ]
    for name, spec in permissions.PERMISSIONS.items():
        (line,) = [line for line in lines if line.strip().startswith(spec.text) and KIND.scopes[name] in line]
        assert line.index(KIND.scopes[name]) == head.index("scope of a token")
    tty = StringIO()
    monkeypatch.setattr(tty, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    call_command("doctor", stdout=tty)
    printed = capsys.readouterr().out
    assert all(spec.text in printed and KIND.scopes[name] in printed for name, spec in permissions.PERMISSIONS.items())


def test_admin_rights_that_the_webhooks_need_are_no_trouble(world: World) -> None:
    world.poll()
    see(world, "ada")
    Repository.objects.update(webhooks="on")
    assert [f.text for f in checks.check_forges() if f.name == "forge sandbox permissions" and f.level == "warning"] == []


def test_the_command_prints_the_table_and_refreshes(world: World) -> None:
    out = StringIO()
    call_command("permissions", refresh=True, stdout=out)
    assert "read repository, pull requests and comments" in out.getvalue()
    assert "The search filters by owner" in out.getvalue()
    out = StringIO()
    call_command("permissions", "recipes/web", json=True, stdout=out)
    assert '"name": "read"' in out.getvalue() and '"yes": 1' in out.getvalue()
    world.remote.set_private("recipes/web")
    world.remote.remove_member(world.org, world.bot)
    with pytest.raises(Exit) as stop:
        call_command("permissions", "recipes/web", refresh=True, stdout=StringIO())
    assert stop.value.code == 1


def test_the_pages_show_the_tables(world: World, admin_client: Client) -> None:
    data = {"action": "refresh_now", "_selected_action": [world.forge.pk]}
    assert "permissions at 1 repositories" in admin_client.post("/admin/enrollment/forge/", data, follow=True).content.decode()
    page = admin_client.get(f"/admin/enrollment/forge/{world.forge.pk}/change/").content.decode()
    assert "see all members of the organisation" in page and "Pull requests have a timeline" in page
    row = Repository.objects.get()
    page = admin_client.get(f"/admin/enrollment/repository/{row.pk}/change/").content.decode()
    assert "permissions of recipes/web: pull" in page
    data = {"action": "refresh_permissions_now", "_selected_action": [row.pk]}
    assert "recipes/web: seen" in admin_client.post("/admin/enrollment/repository/", data, follow=True).content.decode()
    assert "membership" in admin_client.get("/admin/enrollment/right/").content.decode()
