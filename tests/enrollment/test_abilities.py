"""What each version can do is found by asking it, kept, and found anew when something speaks against it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from enrollment import tasks
from enrollment.fakeforge import api
from enrollment.fakeforge.faults import Fault
from enrollment.fakeforge.features import features_of
from enrollment.forge_access import capabilities
from enrollment.forge_access.capabilities import CAPABILITIES
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import Sample
from enrollment.forges.gitea import client
from enrollment.forges.gitea.client import GiteaClient
from enrollment.models import Comment, Forge, Repository, Right
from tests.world import EVERY_VERSION, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]
FORGEJO = "13.0.0+gitea-1.22.0"
#: The table of docs/trust.md, as the fake forge plays the versions.
TABLE: dict[str, dict[str, bool | int]] = {
    "1.15": {
        "page_limit": 50,
        "owner_filter": False,
        "timeline": False,
        "repository_comments_paged": False,
        "pull_comments_paged": False,
        "since_inclusive": True,
        "reactions": True,
        "org_hooks": True,
        "status_by_reader": True,
    },
    "1.22": {
        "page_limit": 50,
        "owner_filter": True,
        "timeline": True,
        "repository_comments_paged": True,
        "pull_comments_paged": False,
        "since_inclusive": True,
        "reactions": True,
        "org_hooks": True,
        "status_by_reader": False,
    },
}
COMMENTS = ("repository_comments_paged", "pull_comments_paged")
TABLE[FORGEJO] = {**TABLE["1.22"], "pull_comments_paged": True}


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(client, "wait_random_exponential", lambda *args, **more: lambda state: 0)
    monkeypatch.setattr(api, "MAX_ITEMS", api.MAX_ITEMS)
    world = World(tmp_path, getattr(request, "param", "1.15"))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    yield world
    world.remote.faults = None
    world.close()


every_version = pytest.mark.parametrize("world", EVERY_VERSION, indirect=True)


def found(world: World) -> dict[str, object]:
    forge = Forge.objects.get()
    return {name: one["value"] for name, one in forge.abilities.items()}


@every_version
def test_the_table_is_found_by_asking(world: World) -> None:
    tasks.see_to_rights()  # with the rights, of which a status tells
    world.say("recipes/web")
    world.say("recipes/web", "Nice.")
    world.hear()
    said_version = world.remote.version
    world.remote.version = "99.9-of-another-name"  # the name is not what counts
    asked = len(world.own_requests())
    tasks.see_to_rights()
    probes = world.own_requests()[asked:]
    assert found(world) == TABLE[said_version]
    assert set(found(world)) == set(CAPABILITIES)
    assert {request.method for request in probes} == {"GET"}
    assert len(probes) < 20
    forge = Forge.objects.get()
    assert forge.abilities_version == "99.9-of-another-name"
    assert forge.abilities_at is not None and forge.abilities_at > timezone.now() - timedelta(minutes=1)
    assert all(one["evidence"] for one in forge.abilities.values())


@every_version
def test_the_table_agrees_with_what_the_sandbox_says_of_itself(world: World) -> None:
    features, table = features_of(world.remote.version), TABLE[world.remote.version]
    assert table["owner_filter"] is features.owner_filter
    assert table["timeline"] is features.timeline
    assert table["repository_comments_paged"] is (features.comments_paged in ("repo", "both"))
    assert table["pull_comments_paged"] is (features.comments_paged == "both")
    assert table["status_by_reader"] is features.readers_set_status


def test_nothing_is_made_up_where_there_is_nothing_to_try_on(world: World) -> None:
    Repository.objects.all().delete()
    world.remote.delete_repo("recipes/web")
    tasks.see_to_rights()
    unknown = {name for name, value in found(world).items() if value is None}
    assert unknown == set(CAPABILITIES) - {"page_limit"}
    assert found(world)["page_limit"] == 50


def test_it_is_asked_again_when_the_version_changes_or_time_has_passed_and_else_not(world: World) -> None:
    def probes() -> int:
        asked = len(world.own_requests())
        tasks.see_to_rights()
        return sum(request.path.endswith("/settings/api") for request in world.own_requests()[asked:])

    world.say("recipes/web")
    world.hear()
    assert [probes(), probes()] == [1, 0]
    world.remote.version = "1.16.0"
    assert [probes(), probes()] == [1, 0]
    Forge.objects.update(abilities_at=timezone.now() - capabilities.EVERY - timedelta(hours=1))
    assert [probes(), probes()] == [1, 0]


def test_an_answer_that_contradicts_has_all_found_anew(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    tasks.see_to_rights()
    forge = Forge.objects.get()
    forge.abilities["owner_filter"]["value"] = True
    forge.abilities["timeline"]["value"] = True
    forge.search = Forge.OwnerFilter.IGNORED  # as polling has seen
    forge.save()
    assert capabilities.contradicted(forge)
    tasks.see_to_rights()
    assert found(world)["owner_filter"] is False
    # A decision about a stranger's code meets a server without a timeline, where one was known.
    forge = Forge.objects.get()
    forge.abilities["timeline"]["value"] = True
    forge.save()
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", number=pull.number)
    world.hear()
    assert Forge.objects.get().abilities_at is None
    tasks.see_to_rights()
    assert found(world)["timeline"] is False


def test_a_limit_on_requests_changes_nothing(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    tasks.see_to_rights()
    before, at = found(world), Forge.objects.get().abilities_at
    Forge.objects.update(abilities_version="older")
    world.remote.faults = lambda request: Fault(status=429) if "/issues/" in request.path else None
    assert "sandbox" in tasks.see_to_rights()
    forge = Forge.objects.get()
    assert (found(world), forge.abilities_at, forge.abilities_version) == (before, at, "older")


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(close="before")])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_answered_stays_as_it_was_and_the_others_are_found(world: World, fault: Fault, known: bool) -> None:
    world.say("recipes/web")
    world.hear()
    if known:
        tasks.see_to_rights()
        Forge.objects.update(abilities_version="older")
    world.remote.faults = lambda request: fault if request.path.endswith("/timeline") else None
    tasks.see_to_rights()
    forge = Forge.objects.get()
    expected = {**TABLE["1.15"], "timeline": False if known else None, "status_by_reader": found(world)["status_by_reader"]}
    assert found(world) == expected
    assert "no answer" in forge.abilities["timeline"]["evidence"]
    assert Right.objects.filter(name="read", held="yes").exists(), "the rights are looked at all the same"
    # It is asked again within the day, and not at once.
    assert not capabilities.is_due(forge)
    Forge.objects.update(abilities_at=timezone.now() - capabilities.FAILED_EVERY - timedelta(minutes=1))
    world.remote.faults = None
    tasks.see_to_rights()
    assert found(world)["timeline"] is False


def test_abilities_that_cannot_be_found_keep_no_right_from_being_seen(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=500) if request.path.endswith("/version") else None
    assert "could not check capabilities" in tasks.see_to_rights()
    assert Right.objects.filter(name="read", held="yes").exists()


def test_a_probe_that_gets_no_answer_says_so(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=502)
    answers = list(
        GiteaClient(world.server.url, world.token, user_agent="cc-ci/test").probe(Sample(("recipes", "web"), 1, "recipes"))
    )
    assert [one.name for one in answers if one.failed] == ["page_limit", "owner_filter", "timeline", *COMMENTS, "org_hooks"]


@pytest.mark.parametrize("fault", [Fault(body="<html>"), Fault(body="[null]"), Fault(body="{}"), Fault(body='[{"id": []}]')])
def test_nonsense_is_no_ability(world: World, fault: Fault) -> None:
    world.remote.faults = lambda request: fault
    answers = {one.name: one.value for one in world.client().probe(Sample(("recipes", "web"), 1, "recipes"))}
    assert answers["page_limit"] is None
    assert answers["since_inclusive"] is None


@every_version
def test_a_server_with_short_pages_loses_nothing(world: World) -> None:
    """Lists without a total end where a page is not full: with a smaller limit than asked for, the first would be the last."""
    api.MAX_ITEMS = 5
    world.remote.add_member(world.org, world.bot, "owner")
    owner = client_for(world.forge)
    for number in range(12):
        owner.create_hook("recipes", "web", url=f"https://ci.example.org/{number}", secret="s", events=["issue_comment"])
    tasks.see_to_rights()
    assert found(world)["page_limit"] == 5
    assert len(list(client_for(Forge.objects.get()).hooks("recipes", "web"))) == 12


def test_what_is_known_is_shown(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    tasks.see_to_rights()
    lines = {line.name: line for line in capabilities.lines_of(Forge.objects.get())}
    assert set(lines) == set(CAPABILITIES)
    assert (lines["timeline"].value, lines["page_limit"].value) == ("no", "50")
    assert "name the commit" in lines["timeline"].otherwise
    assert lines["reactions"].otherwise == ""
    assert Comment.objects.count() == 1


def test_the_docs_hold_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "trust.md").read_text()
    for name, spec in CAPABILITIES.items():
        values = " | ".join(
            {True: "yes", False: "no"}.get(TABLE[version][name], str(TABLE[version][name]))  # type: ignore[call-overload]
            for version in EVERY_VERSION
        )
        assert f"| {spec.text} | {values} | {spec.otherwise} |" in text, name
