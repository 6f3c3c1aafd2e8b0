"""An app that lives in a folder: a deployer for tests of the upgrade machine, with real files, real processes and faults.

`swarm.json` stands for the Swarm, `volumes/data` for the volume. Version 2 migrates the data, and version 1 exits when it sees
that; version 3 migrates it and never becomes healthy. A fault is a file: it fires once, at its point.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.deployers.context import Context
from infra.deployers.docker.tar_manifest import Manifest, of_file
from infra.deployers.docker.volumes import Volume
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address
from infra.deployers.swarm.persistent import ServiceState, StackBaseline

OLD, GOOD, BAD = "1.0.0+1.0", "1.1.0+1.1", "1.2.0+1.2"
FAULTS = ("killed", "lost lease", "full disk", "docker restart")
#: What is called for the lost lease: carries the upgrade out by another worker, to its end.
rival: Callable[[], None] = lambda: None  # noqa: E731


@dataclass
class Machine:
    """The machine's state, in a folder."""

    root: Path
    leak: str = ""  #: what the app says in its log

    @property
    def data(self) -> Path:
        return self.root / "volumes" / "data"

    def services(self) -> dict[str, dict[str, Any]]:
        file = self.root / "swarm.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write(self, services: dict[str, dict[str, Any]]) -> None:
        temporary = self.root / f".swarm.{os.getpid()}"
        temporary.write_text(json.dumps(services))
        temporary.rename(self.root / "swarm.json")

    def begin(self) -> None:
        (self.data / "deep").mkdir(parents=True)
        (self.data / "format").write_text("1")
        (self.data / "deep" / "file").write_bytes(bytes(range(256)) * 40)
        (self.data / "deep" / "file").chmod(0o640)
        (self.data / "link").symlink_to("deep/file")
        self.write({"app": service(OLD, ""), "db": service(OLD, "")})

    def start(self, version: str) -> str:
        """Start the app's code on its data: why it exits, or nothing."""
        kind = (self.data / "format").read_text()
        if version == OLD and kind != "1":
            return f"I do not know data of the format {kind}."
        if version in (GOOD, BAD) and kind == "1":
            (self.data / "format").write_text(version)
            (self.data / "deep" / "file").unlink()
            (self.data / "new").write_text("migrated")
        return ""

    def files(self) -> dict[str, Any]:
        """All of the data, byte for byte."""
        return {
            str(path.relative_to(self.data)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted(self.data.rglob("*"))
        }

    # -- faults ---------------------------------------------------------------------------------------------------------------

    def plan(self, point: str, when: str, fault: str) -> None:
        (self.root / "fault.json").write_text(json.dumps([point, when, fault]))

    def point(self, name: str, when: str) -> None:
        """Where a fault may be waiting."""
        away = self.root / "docker-away"
        if not name.startswith("move") and name != "pin" and away.exists() and (left := int(away.read_text())):
            away.write_text(str(left - 1))
            raise _docker_away()
        file = self.root / "fault.json"
        if not file.exists() or json.loads(file.read_text())[:2] != [name, when]:
            return
        fault = json.loads(file.read_text())[2]
        file.rename(self.root / "fault-met.json")
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "lost lease":
            rival()
        elif fault == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif fault == "docker restart":
            away.write_text("2")
            raise _docker_away()

    @property
    def met(self) -> bool:
        return (self.root / "fault-met.json").exists()


def _docker_away() -> DeployError:
    return DeployError("tool_failed", "Cannot connect to the Docker daemon.")


def service(version: str, mark: str) -> dict[str, Any]:
    return {"version": version, "mark": mark, "task": f"{version}-{mark}", "up": True}


@dataclass
class FolderCopier:
    machine: Machine

    def pack(self, volume: str, target: Path) -> Manifest:
        self.machine.point("pack", "before")
        with tarfile.open(target, "x") as archive:
            archive.add(self.machine.data / "format", "./format")
            self.machine.point("pack", "during")
        target.unlink()
        with tarfile.open(target, "x") as archive:
            archive.add(self.machine.data, ".")
        self.machine.point("pack", "after")
        return of_file(target)

    def extracted(self, source: Path) -> Manifest:
        self.machine.point("prove", "before")
        found = of_file(source)
        self.machine.point("prove", "during")
        self.machine.point("prove", "after")
        return found

    def replace(self, volume: Volume, source: Path) -> Manifest:
        self.machine.point("put back", "before")
        shutil.rmtree(self.machine.data, ignore_errors=True)
        self.machine.data.mkdir()
        self.machine.point("put back", "during")
        with tarfile.open(source) as archive:
            archive.extractall(self.machine.data, filter="fully_trusted")
        self.machine.point("put back", "after")
        copy = source.with_name(f".read-{os.getpid()}")
        try:
            with tarfile.open(copy, "w") as archive:
                archive.add(self.machine.data, ".")
            return of_file(copy)
        finally:
            copy.unlink(missing_ok=True)

    def sweep(self) -> None:
        pass


@dataclass
class FolderDeployer:
    """The parts of `PersistentDeployer` that the machine uses, on a folder."""

    context: Context
    machine: Machine
    version: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return self.context.mark

    def know(self, files: Path) -> None:
        self.version = (files / "version").read_text()

    def fetch(self, files: Path) -> Sequence[str]:
        self.machine.point("fetch", "before")
        self.machine.point("fetch", "during")
        self.machine.point("fetch", "after")
        return ["image"]

    def timeout(self, files: Path) -> int:
        return 1

    def volumes_there(self) -> list[str]:
        return ["data"] if self.machine.data.exists() else []

    def secrets_missing(self) -> dict[str, str]:
        return {"app_password_v1": "password"}

    def services(self) -> list[dict[str, Any]]:
        return []  # it is asked each time

    def parts(self, services: list[dict[str, Any]] | None = None) -> dict[str, ServiceState]:
        return {
            name: ServiceState(
                fingerprint=f"{name} {one['version']} {one.get('hand', '')}",
                mark=one["mark"],
                version=one["version"],
                image=f"image:{one['version']}",
                running=int(one["up"]),
                update=one.get("update", ""),
                tasks=(one["task"],),
                problem="" if one["up"] else "it exited",
            )
            for name, one in self.machine.services().items()
        }

    def docker_began(self) -> str:
        file = self.machine.root / "docker-began"
        return file.read_text() if file.exists() else "at first"

    def published(self, services: list[dict[str, Any]] | None = None) -> dict[str, list[int]]:
        return {}

    def record(self, services: list[dict[str, Any]] | None = None) -> StackBaseline:
        self.machine.point("record", "before")
        self.machine.point("record", "during")
        services = self.machine.services()
        found = StackBaseline(services, dict.fromkeys(services, "id"), {n: f"image:{s['version']}" for n, s in services.items()},
                         [Volume("data")])  # fmt: skip
        self.machine.point("record", "after")
        return found

    def missing_images(self, recorded: StackBaseline) -> list[str]:
        return []

    def name_images(self, recorded: StackBaseline) -> None:
        pass

    def undeploy(self) -> None:
        self.machine.point("stop", "before")
        services = self.machine.services()
        self.machine.write({name: one for name, one in services.items() if name == "app"})
        self.machine.point("stop", "during")
        self.machine.write({})
        self.machine.point("stop", "after")

    def deploy(self, files: Path) -> None:
        version = (files / "version").read_text()
        name = "deploy back" if self.context.mark.endswith("old") else "deploy"
        self.machine.point(name, "before")
        services = self.machine.services()
        self.machine.write({**services, "db": self._service(version, services.get("db"))})
        self.machine.point(name, "during")
        said = self.machine.start(version)
        one = {**self._service(version, services.get("app")), "up": not said}
        self.machine.write({"db": self.machine.services()["db"], "app": one})
        self.machine.point(name, "after")

    def restore_specs(self, files: Path, recorded: StackBaseline) -> None:
        """As `deploy`, with what a hand had added when it was recorded."""
        self.deploy(files)
        hands = {name: spec["hand"] for name, spec in recorded.specs.items() if "hand" in spec}
        services = self.machine.services()
        self.machine.write({name: {**one, **({"hand": hands[name]} if name in hands else {})} for name, one in services.items()})

    def _service(self, version: str, before: dict[str, Any] | None) -> dict[str, Any]:
        return service(version, self.context.mark)

    def settle(self) -> None:
        name = "settle back" if self.context.mark.endswith("old") else "settle"
        self.machine.point(name, "before")
        self.machine.point(name, "during")
        app = self.machine.services().get("app", {"up": False, "version": "nothing"})
        if not app["up"]:
            raise DeployError("exits", f"The service app of {app['version']} keeps failing.")
        if app["version"] == BAD:
            raise DeployError("never_healthy", "The health check of app never passes.")
        if app["mark"] != self.context.mark:
            raise DeployError("rolled_back", "Swarm rolled app back by itself (silent rollback).")
        self.machine.point(name, "after")

    def copier(self, images: Sequence[str]) -> FolderCopier:
        return FolderCopier(self.machine)

    def address(self) -> Address | None:
        return None

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        name = "probe back" if self.context.mark.endswith("old") and self._back() else "probe"
        self.machine.point(name, "before")
        self.machine.point(name, "during")
        up = self.machine.services().get("app", {}).get("up")
        self.machine.point(name, "after")
        return (0, "") if up else (1, "nobody is there")

    def _back(self) -> bool:
        return any(one["mark"].endswith("old") for one in self.machine.services().values())

    def logs(self, service: str = "", lines: int = 50) -> str:
        return f"the app's last words{self.machine.leak}"

    def close(self) -> None:
        pass
