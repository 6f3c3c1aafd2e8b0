"""What is this machine's fault, and no recipe's, on a Docker of the test's own: a node that is away, a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers.context import Context
from infra.deployers.docker import images
from infra.deployers.errors import DeployError
from infra.deployers.swarm import convergence
from infra.deployers.swarm.ephemeral import SwarmDeployer
from tests.docker import IMAGE, docker
from tests.e2e.second_docker import SecondDocker, need_second_docker
from tests.networks import within
from tests.registry import registry

pytestmark = pytest.mark.docker


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDocker]:
    """A Docker whose data is on a small disk of its own."""
    need_second_docker()
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # a socket's path is short
        one = SecondDocker(Path(place) / "d")
        data = one.root / "data"
        data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", data], check=True, timeout=20)
        try:
            monkeypatch.setenv("DOCKER_HOST", one.host)
            one.start()
            one.make_swarm()
            yield one
        finally:
            one.close()


def context(folder: Path, **given: Any) -> Context:
    work = folder / "work"
    work.mkdir()
    app = {"image": IMAGE, "command": ["sleep", "1000"], "deploy": {"restart_policy": {"delay": "0s"}}}
    (folder / "compose.yml").write_text(yaml.safe_dump({"version": "3.8", "services": {"app": app}}))
    return Context(uuid.uuid4().hex, "test", "x", folder, work, **given)


def test_a_node_that_takes_no_tasks_is_ours(second: SecondDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "MOST_HOMELESS", 0.5)
    docker("node", "update", "--availability=drain", docker("node", "ls", "--quiet"))
    app = SwarmDeployer(context(tmp_path))
    try:
        app.deploy()
        with pytest.raises(DeployError) as caught:
            app.settle()
    finally:
        assert app.teardown() == []
    assert caught.value.kind == "no_node" and not caught.value.recipes_fault
    assert caught.value.message.startswith("A node of the swarm is down or unavailable for tasks, and no other node can run app")
    assert "docker node ls" in caught.value.fix


def test_a_disk_that_a_pull_fills_is_ours(second: SecondDocker, tmp_path: Path) -> None:
    data = second.root / "data"
    with (data / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(data).free - (8 << 20))
    with within(second.netns), registry(filling=24 << 20) as there, pytest.raises(DeployError) as caught:
        images.get(there.add("cc-ci-test/big"), context(tmp_path, registries=[there.host]))
    assert caught.value.kind == "pull_failed" and not caught.value.recipes_fault
    assert "no space left on device" in caught.value.message
    assert caught.value.fix.startswith("Free disk space where Docker keeps its images")
