"""doctor's lines on the forges: each that is not well says what to type."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from controlplane.registry import Finding, registry
from enrollment.checks import check_forges
from enrollment.fakeforge.faults import Fault
from enrollment.models import Forge, Repository
from tests.world import World

pytestmark = pytest.mark.django_db


def lines() -> list[Finding]:
    return list(check_forges())


def trouble() -> Finding:
    """The one line that is not well."""
    (finding,) = [finding for finding in lines() if finding.level != "ok"]
    return finding


def test_all_well(world: World) -> None:
    world.poll()
    found = lines()
    assert [(row.name, row.level) for row in found] == [
        ("forge sandbox", "ok"),
        ("forge sandbox token", "ok"),
        ("forge sandbox repositories", "ok"),
        ("forge sandbox permissions", "ok"),
        ("forge sandbox polling", "ok"),
    ]
    assert found[0].text == f"answers at {world.server.url}, version 1.15"
    assert found[1].text == "belongs to cc-ci"
    assert found[2].text == "1 enrolled, readable"
    assert "not been checked yet" in found[3].text
    assert found[3].fix == f"to check now: cc-ci permissions --refresh --forge {world.server.url}"
    assert "enrollment.checks.check_forges" in registry.checks.values()


def test_no_forge(db: None) -> None:
    finding = trouble()
    assert finding.level == "warning"
    assert finding.fix == "cc-ci forge add --url https://git.example.org --token-env VARIABLE"


def no_server(world: World) -> None:
    world.server.stop()


def no_forge(world: World) -> None:
    world.remote.faults = lambda request: Fault(body="<html>Welcome</html>")


def unknown_token(world: World) -> None:
    world.remote.revoke_tokens(world.bot)
    # The version is told to everybody; a token that is none shows at the next question.
    world.remote.faults = lambda request: Fault(status=200, body='{"version": "1.15"}') if "version" in request.path else None


def token_without_scope(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=403) if request.path.endswith("/user") else None


def token_of_another(world: World) -> None:
    forge = Forge.objects.get()
    forge.token = world.remote.add_token(world.alice)
    forge.save()
    world.remote.add_member(world.org, world.alice, "read")


def team_not_seen(world: World) -> None:
    world.remote.add_to_team("recipes", "Maintainers", "alice")
    Repository.objects.update(team="maintainers")


def nothing_enrolled(world: World) -> None:
    Repository.objects.update(active=False)


def hidden(world: World) -> None:
    world.remote.delete_repo("recipes/web")


def shy(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=500) if "/repositories/" in request.path else None


def mighty(world: World) -> None:
    world.remote.add_member(world.org, world.bot, "write")


def stale(world: World) -> None:
    Forge.objects.update(last_ok_at=timezone.now() - timedelta(hours=1))


def never(world: World) -> None:
    Forge.objects.update(last_ok_at=None)


def failing(world: World) -> None:
    Forge.objects.update(failures=2, last_error="GET /repos/issues/search: 500")


ADD = "cc-ci forge add --url {url} --token-env VARIABLE"


@pytest.mark.parametrize(
    ("harm", "name", "level", "words", "fix"),
    [
        (no_server, "", "error", "cc-ci continues by itself", "curl {url}/api/v1/version"),
        (no_forge, "", "error", "not from a forge", "curl {url}/api/v1/version"),
        (unknown_token, " token", "error", "rejects the token", ADD),
        (token_without_scope, " token", "error", "lacks a permission", ADD),
        (token_of_another, " token", "error", "the token now belongs to alice", ADD),
        (
            team_not_seen,
            " teams",
            "warning",
            "the team maintainers of recipes",
            "add cc-ci to the team at {url}/org/recipes/teams",
        ),
        (nothing_enrolled, " repositories", "warning", "none enrolled", "cc-ci enroll OWNER/REPO"),
        (hidden, " repositories", "error", "cannot be read: recipes/web", "cc-ci unenroll recipes/web"),
        (shy, " repositories", "error", "recipes/web: GET", "cc-ci doctor"),
        (
            mighty,
            " permissions",
            "warning",
            "may write to recipes/web",
            "remove the write permission of cc-ci at {url}/recipes/web",
        ),
        (stale, " polling", "warning", "is a worker running", "cc-ci work --web"),
        (never, " polling", "warning", "is a worker running", "cc-ci work --web"),
        (failing, " polling", "error", "GET /repos/issues/search: 500", "cc-ci poll --once"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_trouble_says_what_to_type(
    world: World, harm: Callable[[World], None], name: str, level: str, words: str, fix: str
) -> None:
    world.poll()
    harm(world)
    finding = trouble()
    world.remote.faults = None
    assert (finding.name, finding.level) == (f"forge sandbox{name}", level)
    assert words in finding.text
    assert fix.format(url=world.server.url) in finding.fix
    assert world.token not in finding.text + finding.fix


def test_a_token_that_cannot_be_decrypted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    finding = trouble()
    assert "Cannot decrypt a secret" in finding.text
    assert finding.fix == ADD.format(url=world.server.url)


def test_a_forge_that_is_switched_off_is_left_alone(world: World) -> None:
    Forge.objects.update(enabled=False)
    assert trouble().text == "no forge is configured"


def test_how_long_is_too_long_follows_the_ticks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Forge.objects.update(last_ok_at=timezone.now() - timedelta(minutes=10))
    assert trouble().name == "forge sandbox polling"
    monkeypatch.setattr(settings.CC_CI, "poll_seconds", 300)
    assert [row for row in lines() if row.level != "ok"] == []
