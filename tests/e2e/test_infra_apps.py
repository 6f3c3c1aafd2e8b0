"""The server's own apps on the real Swarm: upgraded, rolled back with their data, contested; each app has a stack of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import running
from infra.deployers.base import probe
from infra.deployers.manifest import Manifest
from infra.models import AlertSent, InfraApp, InfraRelease
from infra.states import UpgradeState
from tests.docker import need_swarm
from tests.e2e.infra_recipes import NEW, OLD, Recipe, Server, told

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]

TWO = {"compose.yml": {"version one": "version two"}}
MIGRATES = {"abra.sh": {"v1": "v2"}, "compose.yml": {"file: start.sh": "file: next.sh"}}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    need_swarm()
    one = Server(tmp_path, monkeypatch)
    yield one
    one.close()


def page(server: Server, app: InfraApp) -> str:
    deployer = server.deployer(app)
    address = deployer.address()
    assert address
    answer = probe(address, app.domain, "/index.html")
    deployer.close()
    return answer.body.strip() if answer else ""


def data(server: Server, app: InfraApp) -> Manifest:
    deployer = server.deployer(app)
    found = deployer.copier(["cc-ci-test/busybox:1"]).look(f"{app.stack}_data")  # type: ignore[attr-defined]
    deployer.close()
    return found


def test_a_stateless_app_is_upgraded(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    assert page(server, app) == "version one"
    recipe.publish(NEW, TWO)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
    assert page(server, app) == "version two"
    assert (app.running_version, app.pinned_version, app.state) == (NEW, NEW, "settled")
    assert running.see(app).fingerprint == app.fingerprint
    assert upgrade.snapshot is None
    assert set(upgrade.digests) == {"app"} and upgrade.digests["app"]["id"].startswith("sha256:")
    kinds = [kind for kind in upgrade.events.values_list("kind", flat=True) if kind not in ("step", "sample")]
    assert kinds == ["approved", "snapshotting", "deploying", "verifying", "soaking", "succeeded"]


def test_a_version_that_migrates_the_data_is_rolled_back_with_the_data(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    before = data(server, app)
    # It comes up, and migrates; and then does not answer as it should.
    recipe.publish(
        NEW, {**MIGRATES, "next.sh": {"hello two": "hello two", "/data/index.html": "/data/page.html; rm -f /data/index.html"}}
    )
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    after = data(server, app)
    assert after.text == before.text, before.differences(after)
    assert page(server, app) == "hello"
    snapshot = upgrade.snapshot
    assert snapshot and snapshot.proved and snapshot.version == OLD and snapshot.bytes > 100_000
    release = app.releases.get(version=NEW)
    assert release.state == InfraRelease.State.QUARANTINED
    assert AlertSent.objects.filter(kind="rolled_back", app=app).count() == 1
