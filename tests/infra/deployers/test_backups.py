"""What `backupbot.*` labels ask for, and what goes wrong in doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.base import Backup, BackupPart
from infra.deployers.errors import DeployError
from infra.deployers.swarm.backups import Backups, Labelled, Mount, labelled, plan
from tests.docker import need_swarm

Make = Callable[..., Any]
DATA = Mount("data", "s_data", "/data")
ROWS = Mount("rows", "s_rows", "/var/lib/db")
CACHE = Mount("cache", "s_cache", "/cache")


def labels(text: str) -> dict[str, str]:
    return {
        f"backupbot.{key}": value for key, _, value in (line.strip().partition("=") for line in text.split("\n") if line.strip())
    }


def one(text: str, *mounts: Mount, name: str = "app") -> Labelled:
    return Labelled(name, labels(text), mounts)


def test_nothing_is_backed_up_unless_it_is_asked_for() -> None:
    for text in ("", "backup=false", "backup=", "backup.volumes.data=true", "backup.pre-hook=x"):
        assert plan([one(text, DATA)]).parts == []


def test_all_volumes_of_a_service_that_is_turned_on() -> None:
    assert plan([one("backup=true", DATA, ROWS)]).parts == [
        BackupPart("app", "/data", "data"),
        BackupPart("app", "/var/lib/db", "rows"),
    ]


def test_a_volume_is_left_out_or_narrowed_down() -> None:
    asked = one("backup=True\nbackup.volumes.data=false\nbackup.volumes.rows.path=base, conf/x/", DATA, ROWS)
    assert plan([asked]).parts == [
        BackupPart("app", "/var/lib/db/base", "rows"),
        BackupPart("app", "/var/lib/db/conf/x", "rows"),
    ]


@pytest.mark.parametrize(
    ("asked", "lost"),
    [
        (["volumes.data=false"], ["data"]),
        (["volumes.data=false", "volumes.rows=false"], ["data"]),  # the worker saves its rows
        (["volumes.data=false\nbackup.pre-hook=dump > /var/lib/db/x"], []),  # of what is dumped the dump is the backup
    ],
)
def test_what_is_left_out_and_saved_nowhere_may_be_lost(asked: list[str], lost: list[str]) -> None:
    app = one("\n".join(["backup=true", *(f"backup.{line}" for line in asked)]), DATA, ROWS)
    assert plan([app, one("backup=true", ROWS, name="worker")]).left_out == lost


@pytest.mark.parametrize(
    ("path", "hook", "dump"),
    [
        ("backup.sql", "/pg_backup.sh backup", True),
        ("dump", "mysqldump app > /var/lib/db/dump", True),
        ("uploads", "occ maintenance on", False),
        ("backup.sql", "", False),
        (".config", "true", False),
    ],
)
def test_a_file_that_the_pre_hook_writes_is_a_dump(path: str, hook: str, dump: bool) -> None:
    [part] = plan([one(f"backup=true\nbackup.pre-hook={hook}\nbackup.volumes.rows.path={path}", ROWS)]).parts
    assert part.dump is dump


def test_a_volume_of_several_services_is_backed_up_once() -> None:
    shared = replace(DATA, target="/shared")
    parts = plan([one("backup=true", DATA), one("backup=true", shared, name="worker"), one("", shared, name="idle")]).parts
    assert parts == [BackupPart("app", "/data", "data")]
    # One that leaves it out does not speak for the other.
    parts = plan([one("backup=true\nbackup.volumes.data=false", DATA), one("backup=true", shared, name="worker")]).parts
    assert parts == [BackupPart("worker", "/shared", "data")]


def test_the_older_form_names_paths_of_the_container() -> None:
    older = one("backup=true\nbackup.path=/tmp/dump.sql,/data/files/\nbackup.pre-hook=dump > /tmp/dump.sql", DATA)
    assert plan([older]).parts == [
        BackupPart("app", "/tmp/dump.sql", "", dump=True),
        BackupPart("app", "/data/files", "data"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backup.volumes.data.path=../../etc", "points outside the volume"),
        ("backup.volumes.date.path=x", "volumes.date.path of app names a volume that the service does not have"),
        ("backup.path=etc", "is not an absolute path"),
        ("backup.path=/", "is not an absolute path"),
    ],
)
def test_labels_that_cannot_be_obeyed(text: str, said: str) -> None:
    [problem] = plan([one(f"backup=true\n{text}", DATA)]).problems
    assert said in problem


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ([one("backup=true")], "backupbot.backup=true of app backs up nothing: it has no volume"),
        ([one("backup=true\nbackup.volumes.data=false", DATA)], "of app backs up nothing: all its volumes are excluded"),
        (
            [one("backup=true\nbackup.volumes.data=false\nbackup.pre-hook=x", DATA)],
            "backupbot.backup=true of app backs up nothing",
        ),
        ([one("backup=true\nbackup.pre-hook=x"), one("backup=true", DATA, name="db")], ""),
        ([one("backup=true", DATA), one("backup=true", DATA, name="web")], ""),  # the same volume, saved once
        ([one("backup=true\nbackup.path=/etc/app")], ""),
    ],
)
def test_a_backup_that_saves_nothing_is_a_problem(services: list[Labelled], said: str) -> None:
    assert " ".join(plan(services).problems).endswith(said) and bool(plan(services).problems) == bool(said)


def test_what_no_backup_has_is_named() -> None:
    found = plan(
        [one("backup=true", DATA), one("", ROWS, name="db"), one("backup=true\nbackup.volumes.cache=false", CACHE, name="w")]
    )
    assert found.unsaved == ["rows"]
    assert found.wanted == ["app", "w"]


def test_labels_that_nobody_obeys_are_named() -> None:
    text = "backup=true\nbackup.command=x\nrestore=true\nbackup.volumes.data=true\nbackup.pre-hook=y\nrestore.post-hook=z"
    assert plan([one(text, DATA)]).unknown == ["backupbot.backup.command of app", "backupbot.restore of app"]


def test_what_each_new_task_loses_is_named() -> None:
    mounts = [
        {"Type": "volume", "Source": "s_data", "Target": "/data"},
        {"Type": "volume", "Target": "/anonymous"},
        {"Type": "tmpfs", "Target": "/memory"},
    ]
    files = {"Configs": [{"File": {"Name": "/etc/app"}}], "Secrets": [{"File": {"Name": "key"}}]}
    spec = {"Name": "s_app", "TaskTemplate": {"ContainerSpec": {"Mounts": mounts, **files}}}
    found = labelled(spec, "s", {}).losing(["/data", "/data/", "/memory", "/var/lib/x", "/etc/app"])
    assert found.lost == ["/anonymous", "/var/lib/x"]
    assert plan([found]).lost == ["app:/anonymous", "app:/var/lib/x"]
    assert sorted(found.beside("/")) == ["/anonymous", "/data", "/etc/app", "/memory", "/run/secrets/key"]
    assert found.beside("/data") == []


def test_a_database_that_nobody_saves_is_named_unless_it_is_dumped() -> None:
    db = one("backup=true\nbackup.pre-hook=dump\nbackup.path=/tmp/dump.sql", ROWS, name="db")
    assert plan([one("backup=true", DATA), db]).unsaved == []
    assert plan([one("backup=true", DATA), one("", ROWS, name="db")]).unsaved == ["rows"]
    assert (plan([db]).hooked, plan([db]).dumped) == (["db"], [])
    both = one("backup=true\nbackup.pre-hook=dump\nrestore.post-hook=load", ROWS, name="db")
    assert plan([both]).dumped == ["db"]


def test_the_nearest_volume_holds_a_path() -> None:
    inner = Mount("sub", "s_sub", "/data/sub")
    [part] = plan([one("backup=true\nbackup.path=/data/sub/file", DATA, inner)]).parts
    assert part.volume == "sub"


@pytest.mark.parametrize(
    ("image", "database"),
    [
        ("postgres:16", True),
        ("bitnami/postgresql:15@sha256:0", True),
        ("registry.example.org:5000/x/postgis-17:1", True),
        ("mariadb:10.11", True),
        ("mongo:7", True),
        ("ghcr.io/x/synapse-postgres:1", True),
        ("nginx:1", False),
        ("mongoose/app:1", False),
        ("postgrest/postgrest:12", False),
        ("", False),
    ],
)
def test_a_database_is_known_by_its_image(image: str, database: bool) -> None:
    assert Labelled("x", {}, [], image).database is database


def test_labels_of_the_deployment_come_over_those_of_the_container() -> None:
    spec = {
        "Name": "s_app",
        "Labels": {"backupbot.backup": "true", "coop-cloud.s.version": "1"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Labels": {"backupbot.backup": "false", "backupbot.backup.pre-hook": "x"},
                "Mounts": [
                    {"Type": "volume", "Source": "s_data", "Target": "/data"},
                    {"Type": "volume", "Source": "other", "Target": "/other"},
                    {"Type": "tmpfs", "Target": "/tmp"},
                    {"Type": "volume", "Target": "/anonymous"},
                ],
            }
        },
    }
    found = labelled(spec, "s", {"other": "rows"})
    assert found == Labelled(
        "app",
        {"backupbot.backup": "true", "backupbot.backup.pre-hook": "x"},
        [DATA, Mount("rows", "other", "/other")],
        covered=["/tmp", "/anonymous"],
        lost=["/anonymous"],
    )


@pytest.mark.docker
def test_what_goes_wrong_is_named(deployer: Make, tmp_path: Path) -> None:
    need_swarm()
    app = deployer("backup-app")
    app.deploy()
    app.settle()
    reports: list[str] = []

    def work(text: str, most: int = 1 << 20) -> Backups:
        own = Labelled("db", labels(text), [ROWS])
        return Backups([own], app.owned.container, app.execute, reports.append, lambda: None, most)

    def failing(text: str, kind: str = "backup_failed", **more: Any) -> str:
        with pytest.raises(DeployError) as caught:
            if kind == "backup_failed":
                work(text, **more).backup(tmp_path / "backup")
            else:
                work(text).restore(Backup(tmp_path, ()))
        assert caught.value.kind == kind
        assert caught.value.recipes_fault
        return str(caught.value)

    # The database's own hook fails here, for there is no row yet; and so does what the label asks for without one.
    with pytest.raises(DeployError, match=r"backupbot\.backup\.pre-hook of db failed with exit code 1 .*No such file") as caught:
        app.backup(tmp_path / "real")
    assert caught.value.kind == "backup_failed"
    said = failing("backup=true\nbackup.volumes.rows.path=backup.sql")
    assert "db has no /var/lib/db/backup.sql to back up, which backupbot.backup.volumes.rows.path asks for." in said
    said = failing(
        "backup=true\nbackup.pre-hook=true\nbackup.volumes.rows.path=backup.sql\nbackup.post-hook=touch /var/lib/db/tidied"
    )
    assert "not even after its pre-hook" in said
    assert app.read("db", "/var/lib/db/tidied") == b""  # the post-hook cleans up all the same
    assert "exit code 5" in failing("backup=true\nbackup.post-hook=exit 5")
    assert "exit code 4" in failing("backup=true\nrestore.pre-hook=exit 4", "restore_failed")
    assert "exit code 6" in failing("backup=true\nrestore.post-hook=echo no; exit 6", "restore_failed")
    app.write("db", "/var/lib/db/big", b"x" * (2 << 20))
    assert "larger than the run's limit of 1 MB" in failing("backup=true", most=1 << 20)

    # A folder that the hook makes is a dump as well, and one that was there is data.
    hooked = (
        "backup=true\nbackup.pre-hook=mkdir -p /var/lib/db/out && cp /var/lib/db/small /var/lib/db/out\nbackup.volumes.rows.path="
    )
    app.write("db", "/var/lib/db/small", b"x")
    [made] = work(f"{hooked}out").backup(tmp_path / "folder").parts
    assert made == BackupPart("db", "/var/lib/db/out", "rows", dump=True)
    [found] = work(f"{hooked}out").backup(tmp_path / "again").parts
    assert found == BackupPart("db", "/var/lib/db/out", "rows", dump=False)
    [file] = work(f"{hooked}small").backup(tmp_path / "file").parts
    assert file.dump

    # The older form: a path of the container's own disk.
    older = Labelled("app", labels("backup=true\nbackup.pre-hook=echo oh; echo 1 > /tmp/dump\nbackup.path=/tmp/dump"), [DATA])
    disk = Backups([older], app.owned.container, app.execute, reports.append, lambda: None, 1 << 20)
    backup = disk.backup(tmp_path / "disk")
    assert backup.parts == [BackupPart("app", "/tmp/dump", "", dump=True)]
    assert backup.printed == {"app": "oh"}
    app.write("app", "/tmp/dump", b"2")
    disk.restore(backup)
    assert app.read("app", "/tmp/dump") == b"1\n"
    assert "Restoring app:/tmp/dump" in reports
    # A folder that has gone comes back, but not one above it that nobody backed up.
    again = Backup(tmp_path / "again", [found])
    assert app.execute("db", ["sh", "-c", "rm -r /var/lib/db/out"])[0] == 0
    work(f"{hooked}out").restore(again)
    assert app.read("db", "/var/lib/db/out/small") == b"x"
    lost = replace(found, path="/var/lib/db/lost/out")
    with pytest.raises(DeployError, match="/var/lib/db/lost/out of db could not be restored"):
        work(f"{hooked}out").restore(Backup(tmp_path / "again", [lost]))
