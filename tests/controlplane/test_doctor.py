"""doctor: each line has a test in which that very thing is broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterable
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.test import override_settings
from django.utils import timezone
from django_q.models import OrmQ

from controlplane import doctor, rotation, secrets
from controlplane.cli import NO, Exit
from controlplane.config import BASE_DIR
from controlplane.models import Host, RecurringTask
from controlplane.registry import Finding, Registry, registry
from enrollment.models import Forge

pytestmark = [pytest.mark.both_databases, pytest.mark.slow(0.2)]


def bad(findings: Iterable[Finding]) -> Finding:
    """The one finding that is not well; whatever is not well says what to type."""
    found = [finding for finding in findings if finding.level != "ok"]
    assert all(finding.fix for finding in found)
    assert len(found) == 1, found
    return found[0]


def well(findings: Iterable[Finding]) -> bool:
    return all(finding.level == "ok" for finding in findings)


def real(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", **environment},
        capture_output=True,
        text=True,
    )


# The settings


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", "https://ci.example.org")
    monkeypatch.setattr(settings.CC_CI, "proxies", ["127.0.0.1"])


@pytest.mark.usefixtures("public")
class TestSettings:
    def test_well(self) -> None:
        assert well(doctor.check_settings())

    def test_unknown_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC_CI_WORKER", "4")
        finding = bad(doctor.check_settings())
        assert finding.text == "unknown setting CC_CI_WORKER"
        assert finding.fix == "rename it to CC_CI_WORKERS"

    def test_a_proxy_that_is_not_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings.CC_CI, "proxies", [])
        finding = bad(doctor.check_settings())
        assert (finding.level, finding.fix) == ("warning", "CC_CI_PROXIES=127.0.0.1")

    def test_debug_in_public(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings.CC_CI, "debug", True)
        finding = bad(doctor.check_settings())
        assert (finding.level, finding.fix) == ("error", "DEBUG=false")

    def test_links_that_only_this_machine_can_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings.CC_CI, "base_url", "http://127.0.0.1:8000")
        finding = bad(doctor.check_settings())
        assert (finding.level, finding.fix) == ("warning", "CC_CI_BASE_URL=https://ci.example.org")


# The database


@pytest.mark.django_db
def test_database_well() -> None:
    assert well(doctor.check_database())


def first_line(done: subprocess.CompletedProcess[str], name: str) -> str:
    assert done.returncode == NO, done.stderr
    return next(line for line in done.stdout.splitlines() if f" {name}: " in line)


def test_no_database_yet(tmp_path: Path) -> None:
    done = real("doctor", DATABASE_URL=f"sqlite:///{tmp_path}/none.sqlite3")
    assert "does not exist yet" in first_line(done, "database")
    assert first_line(done, "database").endswith("-> cc-ci migrate")
    assert not (tmp_path / "none.sqlite3").exists()


def test_database_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").write_text("these are not the pages of a database" * 100)
    line = first_line(real("doctor", DATABASE_URL=f"sqlite:///{tmp_path}/x.sqlite3"), "database")
    assert "cannot be reached: file is not a database" in line
    assert "-> ls -l" in line


def test_database_server_that_is_down() -> None:
    line = first_line(real("doctor", DATABASE_URL="postgresql://ccci:hunter2@127.0.0.1:1/ccci"), "database")
    assert "cannot be reached" in line and "hunter2" not in line
    assert line.endswith("-> pg_isready -h 127.0.0.1 -p 1 -d ccci")


def test_migrations_missing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/half.sqlite3"
    assert real("migrate", "auth", DATABASE_URL=url).returncode == 0
    done = real("doctor", DATABASE_URL=url)
    assert "migrations have not been applied" in first_line(done, "database")
    assert first_line(done, "database").endswith("-> cc-ci migrate")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(connection.vendor != "sqlite", reason="about SQLite")
class TestSqlite:
    @pytest.mark.django_db(transaction=True)
    def test_without_a_write_ahead_log(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=DELETE")
            try:
                finding = bad(doctor.check_database())
            finally:
                cursor.execute("PRAGMA journal_mode=WAL")
        assert "journal mode is delete, not wal" in finding.text
        assert finding.fix.endswith("'PRAGMA journal_mode=WAL'")

    @pytest.mark.django_db
    def test_on_a_network_filesystem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "filesystem", lambda path: "nfs4")
        finding = bad(doctor.check_database())
        assert finding.level == "warning" and "nfs4" in finding.text and finding.fix.startswith("DATABASE_URL=postgresql://")

    @pytest.mark.django_db
    def test_two_machines(self) -> None:
        for name in ("one", "two"):
            Host.objects.create(name=name, ticked_at=timezone.now())
        finding = bad(doctor.check_database())
        assert finding.level == "error" and finding.text.startswith("one, two use the same SQLite database")


def test_filesystem_is_told_by_the_nearest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/x /srv/with\\040space nfs4 rw 0 0\ntmpfs /srv/with\\040space/deep tmpfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self: mounts)
    assert doctor.filesystem(Path("/srv/with space/db")) == "nfs4"
    assert doctor.filesystem(Path("/srv/with space/deep/db")) == "tmpfs"
    assert doctor.filesystem(Path("/srv/other")) == "ext4"


# The keys


@pytest.mark.django_db
class TestKeys:
    @pytest.fixture(autouse=True)
    def forge(self, data_dir: Path) -> Forge:
        return Forge.objects.create(name="forge", url="https://git.example.org", token="hunter2")

    def test_well(self) -> None:
        assert well(doctor.check_keys())

    def test_readable_by_others(self, data_dir: Path) -> None:
        path = data_dir / "secret-keys"
        path.chmod(0o640)
        finding = bad(doctor.check_keys())
        assert (finding.level, finding.fix) == ("error", f"chmod 600 {path}")
        subprocess.run(finding.fix.split(), check=True)
        assert well(doctor.check_keys())

    def test_djangos_key_readable_by_others(self, data_dir: Path) -> None:
        path = data_dir / "secret-key"
        path.write_text("x")
        path.chmod(0o644)
        assert bad(doctor.check_keys()).fix == f"chmod 600 {path}"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_somebody_elses(self, data_dir: Path) -> None:
        path = data_dir / "secret-keys"
        os.chown(path, 12345, -1)
        finding = bad(doctor.check_keys())
        assert "is owned by uid 12345" in finding.text
        subprocess.run(finding.fix.split(), check=True)
        assert well(doctor.check_keys())

    def test_another_key(self, forge: Forge) -> None:
        rotation.write_keys([secrets.Fernet.generate_key().decode()])
        finding = bad(doctor.check_keys())
        assert finding.level == "error" and f"enrollment.Forge {forge.pk} token" in finding.text

    def test_key_file_gone(self, data_dir: Path) -> None:
        (data_dir / "secret-keys").unlink()
        finding = bad(doctor.check_keys())
        assert finding.level == "error" and "is missing" in finding.text
        assert not (data_dir / "secret-keys").exists(), "doctor must not make a new one over the loss"

    def test_no_key_and_no_secret_yet(self, data_dir: Path) -> None:
        Forge.objects.all().delete()
        (data_dir / "secret-keys").unlink()
        assert well(doctor.check_keys())


# The queue


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("retry", 60, "CC_CI_QUEUE_RETRY=90"),
        ("max_attempts", 0, 'in controlplane/settings.py: "max_attempts": 3'),
        ("ack_failures", False, 'in controlplane/settings.py: "ack_failures": True'),
        ("catch_up", True, 'in controlplane/settings.py: "catch_up": False'),
    ],
)
def test_queue_settings(name: str, value: object, fix: str) -> None:
    assert well(doctor.check_queue_settings())
    with override_settings(Q_CLUSTER={**settings.Q_CLUSTER, "timeout": 60, name: value}):
        finding = bad(doctor.check_queue_settings())
    assert (finding.level, finding.fix) == ("error", fix)


@pytest.mark.django_db
class TestQueue:
    @pytest.fixture(autouse=True)
    def host(self) -> Host:
        now = timezone.now()
        Host.objects.all().delete()
        return Host.objects.create(name=settings.CC_CI.host, started_at=now, ticked_at=now, worked_at=now)

    def wait(self, host: str, seconds: int) -> None:
        OrmQ.objects.create(key=f"cc-ci-{host}", payload="", lock=timezone.now() - timedelta(seconds=seconds))

    def test_well(self) -> None:
        assert well(doctor.check_queue())

    def test_never_started(self, host: Host) -> None:
        host.delete()
        finding = bad(doctor.check_queue())
        assert (finding.level, finding.fix) == ("warning", "cc-ci work --web")

    def test_not_running(self, host: Host) -> None:
        Host.objects.update(ticked_at=timezone.now() - timedelta(minutes=5))
        finding = bad(doctor.check_queue())
        assert (finding.level, finding.fix) == ("error", "cc-ci work --web")
        assert "no worker on" in finding.text

    @pytest.mark.parametrize("worked", [True, False])
    def test_standing_still(self, worked: bool) -> None:
        old = timezone.now() - timedelta(minutes=5)
        Host.objects.update(worked_at=old if worked else None, started_at=old)
        finding = bad(doctor.check_queue())
        assert finding.level == "error" and "no task has run" in finding.text

    def test_not_keeping_up(self) -> None:
        self.wait(settings.CC_CI.host, 120)
        finding = bad(doctor.check_queue())
        assert finding.level == "warning" and finding.fix == f"CC_CI_WORKERS={settings.CC_CI.workers + 2}"

    def test_tasks_for_a_machine_that_is_gone(self) -> None:
        self.wait("old-name", 120)
        finding = bad(doctor.check_queue())
        assert (finding.level, finding.fix) == ("error", "CC_CI_HOST=old-name cc-ci work")


@pytest.mark.django_db
class TestRecurring:
    @pytest.fixture(autouse=True)
    def row(self) -> RecurringTask:
        RecurringTask.objects.all().delete()
        return RecurringTask.objects.create(name="enrollment.tasks.poll", every_seconds=30, due_at=timezone.now())

    def test_well(self) -> None:
        assert well(doctor.check_recurring_tasks())

    def test_failed_last(self) -> None:
        RecurringTask.objects.update(last_error="ValueError: no")
        finding = bad(doctor.check_recurring_tasks())
        assert (finding.level, finding.fix) == ("error", "cc-ci schedules --run enrollment.tasks.poll")

    def test_switched_off(self) -> None:
        RecurringTask.objects.update(enabled=False)
        finding = bad(doctor.check_recurring_tasks())
        assert finding.level == "warning" and finding.fix.endswith("/admin/controlplane/recurringtask/")


# The disk


@pytest.mark.parametrize(("free", "level"), [(1.5, "warning"), (0.4, "error"), (50, "ok")])
def test_disk_filling_up(monkeypatch: pytest.MonkeyPatch, data_dir: Path, free: float, level: str) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, int(free * 1024**3))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (finding,) = doctor.check_disk()
    assert finding.level == level
    assert bool(finding.fix) == (level != "ok")


def test_disk_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "data_dir", Path("/proc"))
    finding = bad(doctor.check_disk())
    assert finding.level == "error" and "cannot write to /proc" in finding.text


# All together


@pytest.mark.django_db
def test_a_check_that_fails_itself_is_a_finding() -> None:
    checks = Registry()

    def broken() -> Iterable[Finding]:
        raise ZeroDivisionError("by zero")

    def without_database() -> Iterable[Finding]:
        raise DatabaseError("no such table")

    checks.check("first", broken)
    checks.check("second", without_database)
    checks.check("third", lambda: [Finding("third", "ok", "fine")])
    first, second, third = doctor.examine(checks)
    assert (first.level, second.level, third.level) == ("error", "error", "ok")
    assert "by zero" in first.text and "no such table" in second.text
    assert first.fix and second.fix


@pytest.mark.django_db
@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("error", NO)])
def test_exit_code(monkeypatch: pytest.MonkeyPatch, level: str, code: int) -> None:
    monkeypatch.setattr(registry, "checks", {"x": lambda: [Finding("x", level, "[bold]so[/]", "do this")]})  # type: ignore[arg-type]
    out = StringIO()
    try:
        call_command("doctor", stdout=out)
        assert code == 0
    except Exit as stopped:
        assert stopped.code == code
    assert out.getvalue() == f"{level:<7} x: [bold]so[/]  -> do this\n"


@pytest.mark.django_db
def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "checks", {"x": lambda: [Finding("x", "warning", "so", "do this")]})
    out = StringIO()
    call_command("doctor", "--json", stdout=out)
    assert json.loads(out.getvalue()) == [{"name": "x", "level": "warning", "text": "so", "fix": "do this"}]


@pytest.mark.django_db
def test_as_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(registry, "checks", {"x": lambda: [Finding("x", "warning", "[bold]so[/]", "do this")]})
    call_command("doctor", stdout=Terminal())
    shown = capsys.readouterr().out
    assert "[bold]so[/]" in shown and "do this" in shown
