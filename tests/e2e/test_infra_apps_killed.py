"""Upgrades on the real Swarm by workers that are real processes: killed in the middle, and of the proxy before all the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from controlplane import leases
from controlplane.models import Lease
from infra import tasks
from infra.deployers.probe import Address, probe
from infra.lifecycle import move
from infra.models import InfraApp, InfraFile, Upgrade
from infra.releases import discovery
from infra.runtime import inspect
from infra.states import UpgradeState
from infra.upgrades import launcher
from tests.docker import impatient, need_swarm
from tests.e2e.infra_recipes import DATA, NEW, OLD, Recipe, Server, told
from tests.e2e.test_infra_apps import BREAKS, MIGRATES, TWO, data, page
from tests.e2e.traefik import _image, proxy_network
from tests.factories import UpgradeFactory
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    need_swarm()
    one = Server(tmp_path, monkeypatch)
    yield one
    one.close()


def for_processes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are started find the test's database and folder."""
    values = connection.settings_dict
    if connection.vendor == "sqlite":
        url = f"sqlite:///{values['NAME']}"
    else:
        port = f":{values['PORT']}" if values["PORT"] else ""
        login = f"{values['USER']}:{values['PASSWORD']}" if values["PASSWORD"] else values["USER"]
        options = "&".join(f"{key}={value}" for key, value in (values.get("OPTIONS") or {}).items() if isinstance(value, str))
        url = f"postgresql://{login}@{values['HOST']}{port}/{values['NAME']}{f'?{options}' if options else ''}"
    for name, value in {
        "DATABASE_URL": url,
        "CC_CI_DATA_DIR": str(server.root / "data"),
        "CC_CI_ENV_FILE": "",
        "CC_CI_HOST": settings.CC_CI.host,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    }.items():
        monkeypatch.setenv(name, value)


def worker_at(upgrade: Upgrade, words: str) -> int:
    """The worker's process, once its log says this."""
    log, until = inspect.folder_of(upgrade) / "log", time.monotonic() + 240
    while not (log.exists() and words in log.read_text()):
        assert time.monotonic() < until, f"{words!r} was never said: {told(upgrade)}"
        time.sleep(0.02)
    upgrade.refresh_from_db()
    pid = leases.living(upgrade.facts["worker"])
    assert pid
    return pid


def kill_at(upgrade: Upgrade, words: str) -> None:
    """Kill the worker once its log says this."""
    os.kill(worker_at(upgrade, words), signal.SIGKILL)
    until = time.monotonic() + 240
    while leases.living(upgrade.facts["worker"]):
        assert time.monotonic() < until
        time.sleep(0.01)


def to_the_end(upgrade: Upgrade, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not upgrade.final:
        assert time.monotonic() < until, told(upgrade)
        time.sleep(0.2)
        upgrade.refresh_from_db()


@pytest.mark.crash
def test_workers_are_killed_at_the_worst_moments_and_others_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    before = data(server, app)
    recipe.publish(NEW, BREAKS)
    discovery.discover(app)
    for_processes(server, monkeypatch)
    upgrade = UpgradeFactory(app=app, from_version=OLD, to_version=NEW, trigger="a test")
    assert move(upgrade, "approve")
    launcher.start(upgrade)
    for words in ("Copying its volumes", f"Deploying {NEW}", "Restoring the data"):
        kill_at(upgrade, words)
        assert "1 resumed" in tasks.supervise()
    to_the_end(upgrade)
    app.refresh_from_db()
    assert (upgrade.state, app.state) == (UpgradeState.ROLLED_BACK, "settled"), told(upgrade)
    after = data(server, app)
    assert after.text == before.text, before.differences(after)
    assert page(server, app) == "hello"
    assert app.taken.count() == 1
    assert not [p for p in (tmp_path / "store").rglob("*") if p.name.startswith(".")], "no half snapshot is left"


def test_the_whole_stack_comes_back_not_only_the_service_that_failed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = """\
  side:
    image: cc-ci-test/busybox:1
    command: ["sleep", "100000"]
    stop_grace_period: 100ms
    deploy:
      restart_policy:
        delay: 0s
"""
    compose = (DATA / "stateless" / "compose.yml").read_text()
    recipe = Recipe(tmp_path / "recipe", "stateless", {"compose.yml": compose + side})
    app = server.app(recipe)
    before = inspect.see(app)
    assert set(before.parts) == {"app", "side"}
    # The next one has another service, does without `side`, and its app is well; but the new service dies.
    new = side.replace("side", "other").replace('"sleep", "100000"', '"false"').replace("delay: 0s", "condition: none")
    recipe.publish(NEW, {"compose.yml": {"version one": "version two", side: new}})
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    after = inspect.see(app)
    assert after.fingerprint == before.fingerprint, "every spec is what it was"
    # If the first one had not been replaced yet, it counts at once, while Docker still ends the second.
    until(lambda: page(server, app) == "version one")


def test_a_store_that_is_full_stops_it_before_the_new_version_runs(server: Server, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", small], capture_output=True, timeout=20)
    if mounted.returncode:
        why = f"no small file system can be mounted here: {mounted.stderr.decode(errors='replace').strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    try:
        InfraFile.objects.update(stores={"local": {"folder": str(small)}})
        recipe = Recipe(tmp_path / "recipe", "stateful")
        app = server.app(recipe, stateful=True)
        before = data(server, app)
        recipe.publish(NEW, BREAKS)
        upgrade = server.upgrade(app)
        assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
        assert "No space left on device" in upgrade.reason and not upgrade.ran_new
        assert data(server, app).text == before.text and page(server, app) == "hello"
        assert app.releases.get(version=NEW).state == "candidate"
        assert not [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", small], timeout=20, check=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_proxy_itself_is_upgraded_and_then_what_is_behind_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    port = free_port()
    behind = {
        "compose.yml": {
            "    deploy:\n": "    networks: [proxy]\n    deploy:\n",
            "      labels:\n": "      labels:\n        - traefik.enable=true\n"
            "        - traefik.http.routers.${STACK_NAME}.rule=Host(`${DOMAIN}`)\n",
            "services:\n": "networks:\n  proxy:\n    external: true\n\nservices:\n",
        }
    }
    with proxy_network():
        monkeypatch.setattr(settings.CC_CI, "proxy_url", f"http://127.0.0.1:{port}")
        proxy = Recipe(tmp_path / "proxy", "traefik")
        env = {"IMAGE": _image(), "PORT": str(port)}
        traefik = server.app(proxy, env=env, health=[{"http": "/ping", "status": [200]}], position=1)
        recipe = Recipe(tmp_path / "recipe", "stateless", behind)
        app = server.app(recipe, domain="page.example.org", position=2, after=["traefik"])
        assert inspect.is_proxy(traefik) and not inspect.is_proxy(app)

        def through() -> str:
            answer = probe(Address("127.0.0.1", port, proxied=True), app.domain, "/index.html")
            return answer.body.strip() if answer else ""

        assert through() == "version one"
        proxy.publish(NEW, {"compose.yml": {"--log.level=ERROR": "--log.level=WARN"}})
        upgrade = server.upgrade(traefik)
        assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
        recipe.publish(NEW, TWO)
        upgrade = server.upgrade(app)
        assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
        assert through() == "version two"
        # A proxy that does not come up is brought back without its own help.
        proxy.publish("1.2.0+1.2", {"compose.yml": {"--ping=true": "--pinng=true"}})
        upgrade = server.upgrade(traefik, "1.2.0+1.2")
        assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
        assert through() == "version two"
        server.close()


@pytest.mark.long
def test_a_slow_starter_has_the_time_that_its_label_asks_for(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless", {"compose.yml": {"timeout=30": "timeout=2"}})
    app: InfraApp = server.app(recipe)
    slow = {"exec httpd": "sleep 4; exec httpd", "timeout=2": "timeout=60", "retries: 5": "retries: 300"}
    recipe.publish(NEW, {"compose.yml": slow})
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
    assert upgrade.facts["settle_seconds"] == 60 and upgrade.facts["settled_after"] > 3
    # And then the time that it was seen to need, twice, whatever the label says.
    recipe.publish("1.2.0+1.2", {"compose.yml": {"timeout=60": "timeout=2", **TWO["compose.yml"]}})
    again = server.upgrade(app, "1.2.0+1.2")
    assert again.facts["settle_seconds"] >= 2 * upgrade.facts["settled_after"] - 1
    assert again.state == UpgradeState.SUCCEEDED, told(again)


@pytest.mark.long
@pytest.mark.crash
def test_a_worker_that_sleeps_until_its_lease_is_gone_is_ended_by_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    recipe.publish(NEW, MIGRATES)
    discovery.discover(app)
    for_processes(server, monkeypatch)
    upgrade = UpgradeFactory(app=app, from_version=OLD, to_version=NEW, trigger="a test")
    assert move(upgrade, "approve")
    launcher.start(upgrade)
    former = worker_at(upgrade, f"Deploying {NEW}")
    os.kill(former, signal.SIGSTOP)
    assert tasks.supervise() == "no changes", "it lives and has its lease"
    Lease.objects.filter(name=launcher.lease_name(upgrade)).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "1 resumed" in tasks.supervise()
    to_the_end(upgrade)
    app.refresh_from_db()
    assert (upgrade.state, app.running_version) == (UpgradeState.SUCCEEDED, NEW), told(upgrade)
    assert upgrade.fence > 1 and page(server, app) == "hello two"
    with pytest.raises(OSError, match=str(former)):  # there is no such process, or only what is left of one
        leases._process(former)
    assert app.taken.count() == 1
