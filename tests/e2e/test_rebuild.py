"""A lost machine: the Swarm's state, the volumes, the database and the data folder go; infra.yml, the stores and one key stay.

All by the commands that a person types, each a process of its own, on a Docker of the test's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings

from infra.deployers.docker.cli import LABEL_INSTALLATION
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.docker.volumes import Volumes
from tests.docker import IMAGE, docker
from tests.e2e.infra_recipes import NEW, OLD, Recipe
from tests.e2e.second_docker import SecondDocker, need_second_docker
from tests.e2e.test_infra_apps import MIGRATES

pytestmark = pytest.mark.docker

FILE = """\
stores:
  disk:
    folder: {root}/store
  far:
    restic: {root}/restic
    password: file:restic-password

apps:
  front:
    recipe: stateless
    source: {root}/stateless
    domain: front.example.org
    owner: reconciled
    version: {old}
    health: [{{command: [wget, -q, -O, /dev/null, "http://127.0.0.1:8080/"]}}]
    snapshots: none

  accounts:
    recipe: stateful
    source: {root}/stateful
    domain: accounts.example.org
    after: front
    owner: reconciled
    version: {old}
    policy: {{cooldown: 0s, soak: 0s}}
    snapshots: {{store: disk}}

  wiki:
    recipe: stateful
    source: {root}/stateful
    domain: wiki.example.org
    after: front
    owner: reconciled
    version: {old}
    snapshots: {{store: far}}

  drone:
    recipe: drone
    source: {root}/drone
    domain: drone.example.org
    owner: maintainers
"""


class Machine:
    """A machine with cc-ci on it, used by commands."""

    def __init__(self, root: Path, enter: list[str]) -> None:
        self.root, self.enter = root, enter
        self.file = root / "infra.yml"
        self.data = root / "var"
        self.key = Fernet.generate_key().decode()

    def cc_ci(self, *arguments: str, code: int = 0) -> str:
        """Type a command: what it said. Its exit code must be `code`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("CC_CI_", "DATABASE_", "DJANGO_"))}
        env |= {"CC_CI_ENV_FILE": "", "CC_CI_DATA_DIR": str(self.data), "CC_CI_SECRET_KEYS": self.key, "CC_CI_HOST": "lost"}
        command = [*self.enter, sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=self.root)
        assert done.returncode == code, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def lose(self) -> None:
        docker("swarm", "leave", "--force", timeout=240)
        for container in docker("ps", "--all", "--quiet").split():
            docker("rm", "--force", container, check=False)
        for volume in docker("volume", "ls", "--quiet").split():
            docker("volume", "rm", "--force", volume)
        shutil.rmtree(self.data)
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
        assert not docker("service", "ls", "--quiet") and not docker("secret", "ls", "--quiet")


@contextmanager
def new_machine(root: Path) -> Iterator[Machine]:
    """With a Docker of its own, which DOCKER_HOST leads to meanwhile."""
    need_second_docker()
    place = tempfile.mkdtemp(prefix="cc-ci-")  # a socket's path may not be long
    second = SecondDocker(Path(place) / "d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", second.host)
        try:
            second.start()
            second.make_swarm()
            yield Machine(root, second.enter)
        finally:
            second.close()
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with new_machine(tmp_path) as one:
        yield one


def data_of(stack: str) -> Manifest:
    return Volumes({LABEL_INSTALLATION: "a test"}, IMAGE).manifest(f"{stack}_data")


def in_app(stack: str, *command: str) -> str:
    """Run something in the app's container."""
    container = docker("ps", "--quiet", f"--filter=label=com.docker.swarm.service.name={stack}_app").split()[0]
    return docker("exec", container, *command)


def version_of(stack: str) -> str:
    return docker("service", "inspect", f'--format={{{{index .Spec.Labels "coop-cloud.{stack}.version"}}}}', f"{stack}_app")


def test_a_lost_machine_comes_back(machine: Machine) -> None:
    root = machine.root
    (root / "store").mkdir()
    (root / "restic-password").write_text("geheim\n")
    env = {**os.environ, "RESTIC_PASSWORD": "geheim"}
    subprocess.run(["restic", "-r", str(root / "restic"), "init", "-q"], env=env, check=True, timeout=240)
    Recipe(root / "stateless", "stateless")
    stateful = Recipe(root / "stateful", "stateful")
    machine.file.write_text(FILE.format(root=root, old=OLD))

    machine.cc_ci("migrate", "--verbosity=0")
    machine.cc_ci("infra", "apply", "--file=infra.yml")
    said = machine.cc_ci("infra", "apply", "--restore", code=1)
    assert "wiki has no snapshot in the store far" in said, said
    for app in ("accounts", "wiki"):
        machine.cc_ci("infra", "deploy", app, "--fresh")
    assert machine.cc_ci("infra", "diff") == "No differences.\n"
    stateful.publish(NEW, MIGRATES)
    assert "succeeded" in machine.cc_ci("infra", "upgrade", "accounts", NEW, "--now")
    assert "succeeded" in machine.cc_ci("infra", "snapshot", "wiki")
    stacks = {"front": "front_example_org", "accounts": "accounts_example_org", "wiki": "wiki_example_org"}
    before = {app: data_of(stacks[app]) for app in ("accounts", "wiki")}
    keys = {app: in_app(stacks[app], "sh", "-c", "cat /run/secrets/*") for app in before}
    assert len(set(keys.values())) == 2 and f"version: {NEW}" in machine.file.read_text(), "the new pin is in the file"
    assert "warning" not in machine.cc_ci("infra", "check")
    stored = "".join(path.read_text() for path in (root / "store").rglob("*.json"))
    assert all(key not in stored for key in keys.values()), "no secret lies there in clear text"

    machine.lose()

    machine.cc_ci("migrate", "--verbosity=0")
    said = machine.cc_ci("infra", "apply", "--restore", "--file=infra.yml")
    assert f"accounts {NEW} is up with the data of {OLD}" in said and "front 1.0.0+1.0 is up." in said, said
    assert "drone is managed by its maintainers. They run: abra app deploy drone.example.org" in said
    assert {app: version_of(stack) for app, stack in stacks.items()} == {"front": OLD, "accounts": NEW, "wiki": OLD}
    after = {app: data_of(stack) for app, stack in stacks.items() if app in before}
    for app in before:  # the pinned version has migrated the data of the snapshot once more
        assert after[app].text == before[app].text, before[app].differences(after[app])
    assert {app: in_app(stacks[app], "sh", "-c", "cat /run/secrets/*") for app in before} == keys
    made = {app: docker("service", "inspect", "--format={{.CreatedAt}}", f"{stack}_app") for app, stack in stacks.items()}
    assert made["front"] < min(made["accounts"], made["wiki"]), "in the order of `after`"
    assert machine.cc_ci("infra", "diff") == "No differences.\n"
    again = machine.cc_ci("infra", "apply", "--restore")
    assert again.count("is already running; left alone") == 3, again
