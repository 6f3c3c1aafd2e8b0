"""The deployer swarm against a real Docker Swarm. Every test has a stack of its own and leaves nothing."""

from __future__ import annotations

import http.server
import subprocess
import threading
import time
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers.context import Context
from infra.deployers.docker import stacks
from infra.deployers.docker.api import KINDS, ids, inspect
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_KEEP, LABEL_RUN
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from infra.deployers.select import choose
from infra.deployers.swarm.ephemeral import SwarmDeployer
from infra.deployers.swarm.persistent import PersistentDeployer
from tests.docker import IMAGE, docker, impatient, need_swarm
from tests.e2e.traefik import proxy_network
from tests.infra.deployers.conftest import INSTALLATION, RECIPES, left
from tests.registry import registry

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def _swarm() -> None:
    need_swarm()


def test_a_web_app_is_reached_with_nothing_published_and_stops_when_scaled_to_0(deployer: Any) -> None:
    web = deployer("web")
    web.deploy()
    state = web.settle()
    assert state.settled and state.web
    assert state.version == "1.0.0+1.36.1"
    assert [(s.name, s.wanted, s.running, s.health) for s in state.services] == [("app", 1, 1, "healthy")]
    address = web.address()
    answer = probe(address, web.context.domain)
    assert answer and answer.status == 200 and "Hello from the web recipe" in answer.body
    service = inspect("service", [f"{web.context.stack}_app"])[0]
    assert not service["Endpoint"].get("Ports")
    docker("service", "scale", "--detach", f"{web.context.stack}_app=0")
    docker("rm", "--force", *ids("container", f"{LABEL_RUN}={web.context.run_id}"))
    assert probe(address, timeout=2) is None
    assert probe(web.address(), timeout=2) is None
    assert web.teardown() == []
    assert left(web) == []


def test_secrets_are_made_before_and_everything_is_labelled(deployer: Any) -> None:
    web = deployer("web")
    web.deploy()
    web.settle()
    ours = (f"{LABEL_RUN}={web.context.run_id}", f"{LABEL_INSTALLATION}={INSTALLATION}")
    found = {kind: len(ids(kind, *ours)) for kind in KINDS}
    # Two of the recipe, and the one by which it leaves with its template.
    assert found == {"service": 1, "container": 1, "network": 4, "volume": 1, "config": 1, "secret": 1}
    code, value = web.execute("app", ["cat", "/run/secrets/session_key"])
    assert (code, len(value)) == (0, 48)
    assert web.execute("app", ["false"])[0] == 1
    with pytest.raises(DeployError, match="No container of db is running"):
        web.execute("db", ["true"])
    assert not [path for path in web.context.work.iterdir() if value in path.read_text()]


def test_an_image_that_is_missing(deployer: Any) -> None:
    missing = deployer("image-missing")
    with pytest.raises(DeployError, match=r"image registry\.invalid/cc-ci-test/missing:1 is missing on this host") as caught:
        missing.deploy()
    assert caught.value.kind == "pull_failed"  # no registry answered, so who knows whether it is missing
    assert not caught.value.recipes_fault
    assert left(missing) == []


def test_a_health_check_that_is_never_green_fails_before_the_time_limit(deployer: Any) -> None:
    red = deployer("never-healthy", settle_seconds=300)
    red.deploy()
    with pytest.raises(DeployError, match=r'Health check output: "the database is not there"\.') as caught:
        red.settle()
    assert caught.value.kind == "never_healthy"


def test_a_health_check_that_is_slow_meets_the_time_limit(deployer: Any, tmp_path: Path) -> None:
    slow = yaml.safe_load((RECIPES / "never-healthy" / "compose.yml").read_text())
    slow["services"]["app"]["healthcheck"].update(interval="1s", retries=100)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "compose.yml").write_text(yaml.safe_dump(slow))
    red = deployer(tmp_path / "slow", settle_seconds=6)
    red.deploy()
    while not any(service.health for service in red.state().services):
        time.sleep(0.1)
    with pytest.raises(DeployError, match="The health check of app did not pass within 6 s") as caught:
        red.settle()
    assert "the database is not there" in caught.value.message


def test_a_silent_rollback_is_no_upgrade(deployer: Any) -> None:
    app = deployer("silent-rollback/old")
    app.deploy()
    before = app.settle()
    assert before.version == "1.0.0+1.36.1"
    app.deploy(RECIPES / "silent-rollback" / "new")
    with pytest.raises(DeployError) as caught:
        app.settle()
    assert caught.value.kind == "rolled_back"
    assert "non-zero exit (1)" in caught.value.message
    # The trap: everything runs and answers as if nothing had happened.
    state = app.state()
    assert state.settled and state.version == "1.0.0+1.36.1"
    assert state.fingerprint == before.fingerprint
    assert probe(app.address()) is not None


def test_a_service_that_ends_at_once_fails_with_its_last_words(deployer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    ends = deployer("exits-at-once", settle_seconds=300)
    ends.deploy()
    with pytest.raises(DeployError, match=r'exit \(7\).* "no configuration found"') as caught:
        ends.settle()
    assert caught.value.kind == "exits"


def test_what_is_forbidden_is_refused_before_anything_exists(deployer: Any, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    text = f"services: {{app: {{image: '{IMAGE}', volumes: ['/var/run/docker.sock:/s']}}}}"
    (tmp_path / "evil" / "compose.yml").write_text(text)
    evil = deployer(tmp_path / "evil")
    with pytest.raises(DeployError, match=r"docker\.sock"):
        evil.deploy()
    assert left(evil) == []


class _Proxy(http.server.BaseHTTPRequestHandler):
    """A server's reverse proxy: knows one host, and says what traefik says to others."""

    deployer: SwarmDeployer
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.headers["Host"])
        direct = SwarmDeployer(self.deployer.context)
        direct._web = self.deployer._web
        direct.context = Context(**{**vars(self.deployer.context), "proxy_url": ""})
        body, status = b"404 page not found\n", 404
        if self.headers["Host"] == self.deployer.context.domain and (address := direct.address()) and address.host:
            with urllib.request.urlopen(f"http://{address}/", timeout=240) as answer:
                body, status = answer.read(), answer.status
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_servers_proxy_is_used_when_there_is_one(deployer: Any) -> None:
    _Proxy.asked = []
    with proxy_network(), http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            _Proxy.deployer = web = deployer("web", proxy_url=f"http://127.0.0.1:{server.server_address[1]}")
            web.deploy()
            web.settle()
            address = web.address()
            assert address.proxied and address.port == server.server_address[1]
            assert set(_Proxy.asked) == {web.context.domain}
            assert web.teardown() == []
            gone = probe(address, web.context.domain)
            assert gone and not gone.from_app(address)  # the proxy answers on; the app does not
        finally:
            server.shutdown()


def test_auto_takes_the_swarm_when_the_images_are_there(deployer: Any, tmp_path: Path) -> None:
    for recipe, name in (("process-web", "swarm"), ("web", "swarm")):
        assert choose("auto", deployer(recipe).context).name == name
    text = (RECIPES / "process-web" / "compose.yml").read_text().replace(IMAGE, "127.0.0.1:9/x:1")
    without = "\n".join(line for line in text.splitlines() if "image:" not in line)
    for name, content in (("missing", text), ("none", without)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compose.yml").write_text(content)
        (tmp_path / name / "www").mkdir()
        (tmp_path / name / "www" / "index.html").touch()
        assert choose("auto", deployer(tmp_path / name).context).name == "process"


def test_without_a_swarm_auto_runs_processes_or_says_what_to_do(
    deployer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    assert choose("auto", deployer("process-web").context).name == "process"
    with pytest.raises(DeployError, match="Docker does not answer") as caught:
        choose("auto", deployer("web").context)
    assert "docker swarm init" in caught.value.fix
    with pytest.raises(DeployError) as caught:
        choose("swarm", deployer("web").context)
    assert caught.value.kind == "tool_missing"
    monkeypatch.delenv("DOCKER_HOST")


def running(deployer: SwarmDeployer) -> None:
    """Wait for its task alone: `settle` would watch a service without a port for a while."""
    until = time.monotonic() + 240
    while True:
        with suppress(DeployError):
            deployer.owned.container("app")
            return
        assert time.monotonic() < until, "it did not start"
        time.sleep(0.1)


@pytest.mark.long
def test_a_long_lived_app_keeps_its_data_and_gets_time_to_stop(deployer: Any, tmp_path: Path) -> None:
    """As the server's own apps will want it: another object, a later day, the same stack."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "compose.yml").write_text(
        yaml.safe_dump(
            {
                "services": {
                    "app": {
                        "image": IMAGE,
                        "command": ["sh", "-c", "trap 'echo stopped > /data/state; exit 0' TERM; while :; do sleep 0.1; done"],
                        "volumes": ["data:/data"],
                    }
                },
                "volumes": {"data": None},
            }
        )
    )
    first = deployer(tmp_path / "app", ephemeral=False)
    first.deploy()
    running(first)
    first.undeploy()
    assert left(first) == [f"volume {first.context.stack}_data"]
    second = SwarmDeployer(first.context)
    second.deploy()
    running(second)
    assert second.read("app", "/data/state") == b"stopped\n"
    second.context.ephemeral = True
    assert second.teardown() == []


@pytest.mark.parametrize("kind", [SwarmDeployer, PersistentDeployer])
def test_a_task_starts_from_the_image_that_was_pulled_whatever_its_registry_has_by_then(
    kind: type[SwarmDeployer], deployer: Any, tmp_path: Path
) -> None:
    with registry() as there:
        image = there.add(f"cc-ci-test/{uuid.uuid4().hex[:12]}")
        (tmp_path / "compose.yml").write_text(yaml.safe_dump({"version": "3.8", "services": {"app": {"image": image}}}))
        ours = {} if kind is SwarmDeployer else {"app": "x", "app_stack": "", "mark": "1", "ephemeral": False}
        app = deployer(tmp_path, kind, registries=[there.host], **ours)
        if ours:
            app.context.app_stack = f"test-{app.context.run_id[:12]}"
        app.deploy()
        [service] = inspect("service", [f"{app.stack}_app"])
        assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == f"{image}@{app.context.images[image].digest}"
        pulled = inspect("image", [image])[0]["Id"]
        there.asked.clear()
        there.moved += 1

        def containers() -> list[str]:
            """The image of each: a program that is not in it keeps none from being made."""
            found = ids("container", f"com.docker.swarm.service.name={app.stack}_app")
            return [str(one["Image"]) for one in inspect("container", found)]

        while not containers():
            time.sleep(0.1)
        docker("service", "update", "--force", "--detach", "--quiet", f"{app.stack}_app")
        while len(started := containers()) < 2:
            time.sleep(0.1)
        assert set(started) == {pulled} and there.asked == []
    assert app.teardown() == []
    docker("image", "rm", "--force", pulled)


def test_an_image_cannot_keep_its_container(tmp_path: Path) -> None:
    """`LABEL cc-ci.keep=true` of an image is a stranger's word: only what cc-ci labels is kept."""
    run, image = uuid.uuid4().hex, f"cc-ci-test/kept:{uuid.uuid4().hex[:8]}"
    container = docker("create", IMAGE)
    tar = subprocess.run(["docker", "export", container], capture_output=True, check=True).stdout
    docker("rm", container)
    imported = ["docker", "import", "--change", "LABEL cc-ci.keep=true", "-", image]
    subprocess.run(imported, input=tar, capture_output=True, check=True)
    try:
        labels = (f"--label={LABEL_INSTALLATION}={run}", f"--label={LABEL_RUN}={run}")
        docker("run", "--detach", *labels, image, "sleep", "1000")
        assert stacks.list_ours(run) == {run: {LABEL_INSTALLATION: run, LABEL_RUN: run}}
        assert stacks.sweep(run, lambda _: False) == ([f"run {run}"], [])
        assert ids("container", f"{LABEL_RUN}={run}") == []
        volume = docker("volume", "create", *labels, f"--label={LABEL_KEEP}=true")
        assert stacks.sweep(run, lambda _: False) == ([], []), "kept by a person"
        docker("volume", "rm", volume)
    finally:
        docker("rmi", "--force", image)
