"""Apps of the server for tests on the real Swarm: a git recipe with annotated tags and notes, taken over by cc-ci."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings

from infra.deployers.docker.api import KINDS, ids
from infra.deployers.docker.cli import call, docker
from infra.deployers.docker.stacks import LABEL_STACK
from infra.deployers.swarm.persistent import PersistentDeployer
from infra.lifecycle import move
from infra.models import InfraApp, InfraFile, Upgrade
from infra.releases import discovery
from infra.runtime import drift, inspect
from infra.upgrades import executor, launcher
from tests.docker import impatient
from tests.factories import InfraAppFactory, UpgradeFactory
from tests.runs.harness.conftest import git

DATA = Path(__file__).resolve().parents[1] / "data" / "infra"
OLD, NEW = "1.0.0+1.0", "1.1.0+1.1"
HTTP = [{"http": "/index.html", "status": [200]}]
Changes = Mapping[str, Mapping[str, str] | str]


class Recipe:
    """A recipe's repository; its first version is the data's."""

    def __init__(self, folder: Path, name: str, changes: Changes | None = None) -> None:
        self.folder, self.name = folder, name
        shutil.copytree(DATA / name, folder)
        git(folder, "init", "--quiet", "--initial-branch=main")
        self._change(changes or {})
        self._publish(OLD, "The first version.")

    def publish(self, version: str, changes: Changes, notes: str = "Better than before.") -> None:
        """A new version: whole files, or texts replaced in files, each of which has to be there."""
        compose = self.folder / "compose.yml"
        labels = [line for line in compose.read_text().splitlines() if ".version=" in line]
        current = labels[0].rpartition("=")[2].strip('"')
        self._change(changes)
        compose.write_text(compose.read_text().replace(f"version={current}", f"version={version}"))
        self._publish(version, notes)

    def _change(self, changes: Changes) -> None:
        for name, change in changes.items():
            path = self.folder / name
            if isinstance(change, str):
                path.write_text(change)
                continue
            text = path.read_text()
            for old, new in change.items():
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            path.write_text(text)

    def _publish(self, version: str, notes: str) -> None:
        (self.folder / "release").mkdir(exist_ok=True)
        (self.folder / "release" / version).write_text(notes)
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--message", version)
        git(self.folder, "tag", "--annotate", "--message", version, version)


class Server:
    """cc-ci on this machine's Swarm, with apps that are gone at the end."""

    def __init__(self, root: Path, monkeypatch: Any) -> None:
        self.root = root
        monkeypatch.setattr(settings.CC_CI, "data_dir", root / "data")
        monkeypatch.setattr(executor, "SAMPLE_SECONDS", (0.1, 0.5))
        impatient(monkeypatch, 2)
        (root / "store").mkdir()
        InfraFile.objects.create(path=str(root / "infra.yml"), stores={"local": {"folder": str(root / "store")}})
        self.apps: list[InfraApp] = []

    def app(self, recipe: Recipe, *, stateful: bool = False, **values: Any) -> InfraApp:
        """Deploy the recipe's first version as an app of the server, and let cc-ci see it."""
        name = f"{recipe.name}-{uuid.uuid4().hex[:8]}"
        given: dict[str, Any] = {
            "name": name,
            "recipe": recipe.name,
            "source": str(recipe.folder),
            "stack": f"ccci-infra-{os.getpid()}-{name}"[:50],
            "policy": {"soak": "0s", "cooldown": "0s"},
            "health": HTTP,
            "running_version": "",
            "pinned_version": OLD,
            "snapshots": {"of": "volumes", "store": "local", "keep": 2} if stateful else {"of": "none", "store": "", "keep": 3},
        }
        app: InfraApp = InfraAppFactory(**{**given, **values})
        self.apps.append(app)
        discovery.discover(app)
        files = inspect.checkout(app, app.releases.get(version=OLD).commit, self.root / name)
        deployer = inspect.deployer_for(app, files, self.root / f"{name}-work", mark="first", seconds=300)
        deployer.deploy(files)
        deployer.settle()
        deployer.close()
        assert drift.check(app) == "looked at"
        app.refresh_from_db()
        assert app.running_version == OLD
        return app

    def deployer(self, app: InfraApp) -> PersistentDeployer:
        """To look at an app with the eyes of its first version."""
        deployer = inspect.deployer_for(app, self.root / app.name, self.root / f"{app.name}-work")
        deployer.know(self.root / app.name)
        return deployer

    def upgrade(self, app: InfraApp, version: str = NEW, **asked: Any) -> Upgrade:
        """Carry an upgrade out here."""
        discovery.discover(app)
        app.refresh_from_db()
        upgrade: Upgrade = UpgradeFactory(
            app=app, from_version=app.running_version, to_version=version, asked=asked, trigger="a test"
        )
        assert move(upgrade, "approve")
        launcher.execute(Upgrade.objects.select_related("app").get(pk=upgrade.pk))
        upgrade.refresh_from_db()
        app.refresh_from_db()
        return upgrade

    def close(self) -> None:
        for app in self.apps:
            label = f"{LABEL_STACK}={app.stack}"
            call("stack", "rm", app.stack)
            until = time.monotonic() + 240
            while any(ids(kind, label) for kind in ("container", "network")) and time.monotonic() < until:
                if found := ids("container", label):
                    call("rm", "--force", *found)
                time.sleep(0.1)
            for kind in [kind for kind in KINDS if kind != "container"]:
                if found := ids(kind, label):
                    docker(kind, "rm", *found)


def told(upgrade: Upgrade) -> str:
    file = inspect.folder_of(upgrade) / "log"
    return f"{upgrade.state} {upgrade.reason}\n{file.read_text() if file.exists() else ''}"
