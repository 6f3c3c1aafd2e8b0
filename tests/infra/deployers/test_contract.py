"""The contract of the deployers (`infra.deployers.base.Deployer`): every verb, for every kind, on the real thing.

What a kind cannot do it has to refuse by name.
"""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.base import Backup, BackupPart, Deployer
from infra.deployers.docker.api import KINDS, ids, inspect
from infra.deployers.docker.cli import LABEL_KEEP, LABEL_RUN
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from infra.deployers.process.deployer import ProcessDeployer
from infra.deployers.swarm import ephemeral
from infra.deployers.swarm.ephemeral import SwarmDeployer
from tests.docker import docker, need_swarm
from tests.infra.deployers.conftest import INSTALLATION, RECIPES

Make = Callable[..., Any]
ALL = [
    pytest.param(SwarmDeployer, id="swarm", marks=pytest.mark.docker),
    pytest.param(ProcessDeployer, id="process"),
]


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> type[Deployer]:
    found: type[Deployer] = request.param
    if found is not ProcessDeployer:
        need_swarm()
    elif not shutil.which("busybox"):
        pytest.skip("there is no busybox to run as a process")
    return found


def newer(old: Path, folder: Path) -> Path:
    """The next version of contract-app: another page under another name, one more secret."""
    shutil.copytree(old, folder)
    compose = folder / "compose.yml"
    text = (
        compose.read_text().replace("version=1.0.0+", "version=1.1.0+").replace("- session_key", "- session_key\n      - api_key")
    )
    compose.write_text(
        f"{text}  api_key:\n    external: true\n    name: ${{STACK_NAME}}_api_key_${{SECRET_API_KEY_VERSION}}\n",
    )
    (folder / ".env.sample").write_text(f"{(folder / '.env.sample').read_text()}SECRET_API_KEY_VERSION=v1 # length=12\n")
    (folder / "abra.sh").write_text("export INDEX_VERSION=v2\n")
    (folder / "www" / "index.html").write_text("<h1>The next version</h1>\n")
    return folder


def refused(deployer: Deployer, verb: str, *arguments: Any) -> None:
    """The verb is not for this kind, which says so with its name."""
    with pytest.raises(DeployError, match=f"The {deployer.name} deployer cannot {verb}") as caught:
        getattr(deployer, verb if verb != "upgrade" else "deploy")(*arguments)
    assert caught.value.kind == "not_applicable"
    assert caught.value.fix
    assert not caught.value.recipes_fault


def page(deployer: Deployer) -> str:
    address = deployer.address()
    assert address
    answer = probe(address, deployer.context.domain)
    return answer.body if answer else ""


def there(deployer: Any, kind: str) -> list[str]:
    """The names of what is there of a stack, without the stack's."""
    names = []
    for item in inspect(kind, deployer.owned.ids(kind)):
        name = str((item.get("Spec") or item)["Name"])
        names.append(name.lstrip("/").removeprefix(f"{deployer.stack}_"))
    return sorted(names)


def test_the_life_of_a_deployment(kind: type[Deployer], deployer: Make, tmp_path: Path) -> None:
    one = deployer("contract-app", kind)
    can = one.abilities
    assert one.deployments == 0
    one.new()
    made_before = list(one.secrets)
    one.deploy()
    first = one.settle()
    assert first.settled and first.web
    assert first.version == "1.0.0+1.36.1"
    assert {(s.name, s.wanted, s.running) for s in first.services} == {("app", 1, 1), ("db", 1, 1)}
    assert one.deployments == 1
    assert "Hello from the contract" in page(one)
    until = time.monotonic() + 240
    while "db | the database is ready" not in one.logs("db"):  # processes are there a moment before they say so
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "the database is ready" in one.logs()
    assert one.execute("app", ["sh", "-c", "echo said; exit 3"]) == (3, "said\n")
    with pytest.raises(DeployError):
        one.execute("nobody", ["true"])

    if "upgrade" in can:
        _upgrade(one, made_before, first.fingerprint, tmp_path)
        _stop_and_start_again(one)
        _drop_a_service(one, tmp_path)
    else:
        assert (one.secrets, one.mounts(), one.backups().wanted, one.events()) == ((), (), [], ())
        refused(one, "upgrade", RECIPES / "contract-app")
        refused(one, "undeploy")
        refused(one, "read", "app", "/etc/passwd")
        refused(one, "write", "app", "/tmp/x", b"")
    assert one.teardown() == []
    assert one.teardown() == []
    assert page(one) == ""
    if "upgrade" in can:
        assert {name: there(one, name) for name in KINDS} == {name: [] for name in KINDS}
        assert any("service app remove" in line for line in one.events())
        assert one._watcher._process.poll() is not None  # nobody follows it any more


def _upgrade(one: Any, made_before: list[str], before: str, tmp_path: Path) -> None:
    """From here on things are as they are on a Swarm."""
    assert len(made_before) == 1 and list(one.secrets) == made_before  # `deploy` made no second one
    assert one.execute("app", ["cat", "/run/secrets/session_key"]) == (0, made_before[0])
    assert len(made_before[0]) == 40
    assert one.execute("app", ["sh", "-c", "echo $MAIL"]) == (0, f"noreply@{one.context.domain}\n")  # from the overlay
    assert one.state().fingerprint == before
    assert set(one.state().ports) == {"app:2222/tcp", "app:2525/tcp"}  # of both files, the web port left out
    assert set(one.mounts()) == {BackupPart("app", "/data", "data"), BackupPart("db", "/var/lib/db", "rows")}
    assert one.backups().parts == []
    lines = one.events()
    assert any("container app.1 health_status: healthy" in line for line in lines)
    assert any("secret session_key_v1 create" in line for line in lines)

    one.write("app", "/data/kept", b"a marker")
    assert one.read("app", "/data/kept") == b"a marker"
    assert one.read("app", "/data/kept", most=3) == b"a m"
    assert one.read("app", "/data/nothing") is None
    assert one.read("app", "/data") is None
    with pytest.raises(DeployError, match="/data/no/folder"):
        one.write("app", "/data/no/folder/x", b"")

    db = one.owned.container("db")
    one.deploy(newer(RECIPES / "contract-app", tmp_path / "newer"))
    after = one.settle()
    assert after.version == "1.1.0+1.36.1"
    assert after.fingerprint not in ("", before)
    assert one.deployments == 1
    assert "The next version" in page(one)
    assert len(one.secrets) == 2 and one.execute("app", ["cat", "/run/secrets/api_key"]) == (0, one.secrets[1])
    assert one.execute("app", ["cat", "/run/secrets/session_key"]) == (0, made_before[0])
    assert one.read("app", "/data/kept") == b"a marker"
    assert one.owned.container("db") == db  # what did not change goes on


def _stop_and_start_again(one: Any) -> None:
    one.undeploy()
    assert there(one, "service") == there(one, "container") == there(one, "network") == []
    assert there(one, "volume") == ["data", "database"]
    assert there(one, "secret") == ["api_key_v1", "session_key_v1"]
    assert there(one, "config") == ["index_v1", "index_v2"]
    one.deploy(one.context.checkout)
    assert one.settle().version == "1.0.0+1.36.1"
    assert one.deployments == 2
    assert one.read("app", "/data/kept") == b"a marker"
    assert len(one.secrets) == 2


def _drop_a_service(one: Any, tmp_path: Path) -> None:
    """It goes on running, as `docker stack deploy` has it, and is no reason to call the upgrade rolled back."""
    shutil.copytree(one.context.checkout, tmp_path / "without")
    compose = tmp_path / "without" / "compose.yml"
    text = compose.read_text().replace("version=1.0.0+", "version=1.2.0+")
    compose.write_text(text[: text.index("  db:\n")] + text[text.index("volumes:\n  data:") :])
    one.deploy(tmp_path / "without")
    state = one.settle()
    assert state.version == "1.2.0+1.36.1"
    assert {service.name for service in state.services} == {"app"}
    assert one.dropped() == ["db"]
    assert state.fingerprint == one.state().fingerprint


def test_backup_and_restore(kind: type[Deployer], deployer: Make, tmp_path: Path) -> None:
    one = deployer("backup-app" if "backup" in kind.abilities else "contract-app", kind)
    if "backup" not in one.abilities:
        refused(one, "backup", tmp_path)
        refused(one, "restore", Backup(tmp_path, ()))
        return
    one.deploy()
    one.settle()
    data, dump = BackupPart("app", "/data", "data"), BackupPart("db", "/var/lib/db/backup.sql", "rows", dump=True)
    assert one.backups().parts == [data, dump]
    one.write("app", "/data/marker", b"before")
    one.write("app", "/cache/marker", b"before")
    one.write("db", "/var/lib/db/rows", b"1 one\n")
    assert one.execute("app", ["sh", "-c", "chown 33:34 /data/marker; chmod 600 /data/marker"])[0] == 0

    backup = one.backup(tmp_path / "backup")
    assert backup.parts == [data, dump]
    with tarfile.open(backup.file(data)) as whole, tarfile.open(backup.file(dump)) as single:
        assert sorted(member.name for member in whole) == [".", "./marker"]
        [member] = single
        assert member.name == "backup.sql"
        file = single.extractfile(member)
        assert file and file.read() == b"1 one\n-- complete\n"
    assert one.read("db", "/var/lib/db/backup.sql") is None  # by the post-hook

    one.write("app", "/data/marker", b"after")
    one.write("app", "/data/newer", b"after")
    one.write("app", "/cache/marker", b"after")
    one.write("db", "/var/lib/db/rows", b"2 two\n")
    one.restore(backup)
    assert one.execute("app", ["sh", "-c", "cat /data/marker; stat -c ' %u %g %a' /data/marker"]) == (0, "before 33 34 600\n")
    assert one.read("app", "/data/newer") == b"after"  # as with backup-bot-two: nothing is removed
    assert one.read("app", "/cache/marker") == b"after"
    assert one.read("db", "/var/lib/db/rows") == b"1 one\n"
    assert one.read("db", "/var/lib/db/state") == b"restoring\nrestored\n"


def test_a_neighbours_stack_survives_teardown_and_sweep(kind: type[Deployer], deployer: Make) -> None:
    """It has our prefix and our labels, but another installation's id; and another one has nothing but our stack's name."""
    if kind is ProcessDeployer:
        pytest.skip("processes have no neighbours: they end with their harness")
    one, neighbour = deployer("no-web-port", kind), deployer("no-web-port", kind)
    neighbour.context.installation = "another-installation"
    for each in (one, neighbour):
        each.deploy()
    stranger = docker(
        *("service", "create", "--detach", f"--label=com.docker.stack.namespace={one.stack}"),
        *(f"--name={one.stack}_stranger", "--restart-condition=none", "cc-ci-test/busybox:1", "true"),
    )
    try:
        assert list(ephemeral.list_ours(INSTALLATION)) == [one.context.run_id]
        assert ephemeral.remove_run(INSTALLATION, neighbour.context.run_id) == []
        assert one.teardown() == []
        assert ephemeral.list_ours(INSTALLATION) == {}
        assert ephemeral.sweep(INSTALLATION, lambda run_id: False) == ([], [])
        assert ids("service", f"{LABEL_RUN}={neighbour.context.run_id}")
        assert inspect("service", [stranger])
    finally:
        docker("service", "rm", stranger)


@pytest.mark.docker
def test_a_sweep_takes_dead_runs_and_neither_living_nor_kept_ones(deployer: Make) -> None:
    need_swarm()
    dead, living, kept = deployer("no-web-port"), deployer("no-web-port"), deployer("no-web-port", keep=True)
    for one in (dead, living, kept):
        one.new()
        docker("network", "create", "--driver=overlay", *(f"--label={label}" for label in one.owned.labels), f"{one.stack}_x")
    docker("volume", "create", *(f"--label={label}" for label in (*kept.owned.labels, f"{LABEL_KEEP}=true")), f"{kept.stack}_y")
    docker("network", "rm", f"{kept.stack}_x")
    asked: list[str] = []

    def alive(run_id: str) -> bool:
        asked.append(run_id)
        return run_id == living.context.run_id

    assert ephemeral.sweep(INSTALLATION, alive) == ([f"run {dead.context.run_id}"], [])
    assert sorted(asked) == sorted([dead.context.run_id, living.context.run_id])
    assert there(dead, "network") == []
    assert there(living, "network") == ["x"]
    assert there(kept, "volume") == ["y"]


def test_a_config_changed_under_its_old_name_is_explained(kind: type[Deployer], deployer: Make, tmp_path: Path) -> None:
    if "upgrade" not in kind.abilities:
        pytest.skip("nothing is deployed over")
    one = deployer("contract-app", kind)
    one.deploy()
    shutil.copytree(RECIPES / "contract-app", tmp_path / "changed")
    (tmp_path / "changed" / "www" / "index.html").write_text("other")
    with pytest.raises(DeployError) as caught:
        one.deploy(tmp_path / "changed")
    assert caught.value.kind == "config_immutable"
    assert caught.value.recipes_fault
    assert caught.value.message.startswith("www/index.html changed but kept its name")
    assert "Raise INDEX_VERSION in abra.sh" in caught.value.fix
    shutil.copytree(RECIPES / "contract-app", tmp_path / "bare", ignore=shutil.ignore_patterns("abra.sh"))
    with pytest.raises(DeployError, match=r"The name of the config for www/index\.html has no version") as caught:
        one.deploy(tmp_path / "bare")
    assert (caught.value.kind, caught.value.fix) == ("invalid_recipe", "Add the line export INDEX_VERSION=v1 to abra.sh.")
