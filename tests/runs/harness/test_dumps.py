"""Dumps made by the real tools, whole and cut short."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.harness import dump_checks
from tests.postgres import NoPostgres, binaries, postgres

pytestmark = pytest.mark.slow(0.1)

NOW = 1_750_000_000.0
PG = (
    b"--\n-- PostgreSQL database dump\n--\n\n"
    + b"INSERT INTO x VALUES (1);\n" * 20
    + b"--\n-- PostgreSQL database dump complete\n--\n\n"
)
MARIADB = (
    b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n--\n"
    + b"INSERT INTO x VALUES (1);\n" * 20
    + b"-- Dump completed on 2025-06-15\n"
)
MYSQL = b"-- MySQL dump 10.13\n--\n" + b"INSERT INTO x VALUES (1);\n" * 20 + b"-- Dump completed on 2025-06-15 12:00:00\n"
SQLITE_TEXT = b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n" + b"INSERT INTO x VALUES (1);\n" * 20 + b"COMMIT;\n"


def problem(name: str, data: bytes) -> str:
    return dump_checks.problem(f"/var/backups/{name}", data, NOW, NOW + 5)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("toc.dat", "restore.sql"):
            entry = tarfile.TarInfo(name)
            entry.size = 3000
            archive.addfile(entry, io.BytesIO(b"x" * 3000))
    return buffer.getvalue()


def sqlite(tmp_path: Path) -> bytes:
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("CREATE TABLE x (y)")
        connection.executemany("INSERT INTO x VALUES (?)", [("z" * 500,)] * 100)
    connection.close()
    return (tmp_path / "db").read_bytes()


WHOLE: dict[str, Callable[[Path], bytes]] = {
    "pg.sql": lambda _: PG,
    "pgall.sql": lambda _: PG.replace(b"database", b"database cluster"),
    "mariadb.sql": lambda _: MARIADB,
    "mysql.sql": lambda _: MYSQL,
    "lite.sql": lambda _: SQLITE_TEXT,
    "pg.sql.gz": lambda _: gzip.compress(PG),
    "pg.sql.bz2": lambda _: bz2.compress(PG),
    "pg.sql.xz": lambda _: lzma.compress(PG),
    "two.gz": lambda _: gzip.compress(PG[:40]) + gzip.compress(PG[40:]),
    "base.tar": lambda _: tar(),
    "base.tar.gz": lambda _: gzip.compress(tar()),
    "app.db": sqlite,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_dump_is_complete_and_one_cut_short_is_not(name: str, tmp_path: Path) -> None:
    data = WHOLE[name](tmp_path)
    assert problem(name, data) == ""
    for cut in (data[: len(data) // 2], data[: len(data) * 2 // 3]):
        said = problem(name, cut)
        assert said.startswith(f"{name} is ") and said.endswith("."), len(cut)


def test_older_than_the_run_or_empty() -> None:
    assert "older than the run" in dump_checks.problem("/x/pg.sql", PG, NOW, NOW - 1)
    assert dump_checks.problem("pg.sql", PG, NOW + 0.9, NOW) == ""  # a tar file knows whole seconds only
    assert problem("x", b"") == "x is empty."
    assert problem("x.gz", gzip.compress(b"")) == "x.gz contains nothing."


def test_what_is_inside_a_packed_file_counts_too() -> None:
    cut = gzip.compress(PG[:60])
    assert "without its last line" in problem("pg.sql.gz", cut)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_a_name_that_promises_more(ending: str) -> None:
    assert "although its name says so" in problem(f"pg{ending}", PG)


def test_damage_in_the_middle_is_seen() -> None:
    packed = bytearray(gzip.compress(os.urandom(5000)))
    packed[2500] ^= 0xFF
    assert "truncated or damaged" in problem("x.gz", bytes(packed))
    assert "truncated or damaged" in problem("x.gz", gzip.compress(PG) + b"garbage")


def test_a_format_that_is_not_known_is_no_problem() -> None:
    assert problem("dump.rdb", b"REDIS0011...") == ""


def test_a_bomb_is_not_unfolded_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_checks, "BIGGEST", 4 << 20)
    bomb = gzip.compress(bytes(64 << 20), 1)
    assert "unpacks to more than 4 MB" in problem("x.gz", bomb)
    assert "unpacks to more than 4 MB" in problem("x.gz", bomb[:-8]), "its end would have been damaged"


_starts = [b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"SQLite format 3\0", bytes(257) + b"ustar", b"-- MySQL dump", b""]


@given(st.sampled_from(_starts), st.binary(max_size=600), st.text(max_size=10))
def test_any_bytes_are_judged_without_an_error(start: bytes, rest: bytes, name: str) -> None:
    assert isinstance(problem(name, start + rest), str)


@pytest.fixture(scope="module")
def dump() -> Iterator[Callable[..., bytes]]:
    """Runs the real pg_dump of a real database."""
    try:
        tool = binaries() / "pg_dump"
        with postgres() as url:
            fill = "CREATE TABLE x AS SELECT n, md5(n::text) AS word FROM generate_series(1, 5000) n"
            subprocess.run([binaries() / "psql", url, "-qc", fill], check=True, timeout=240)
            yield lambda *options: subprocess.run([tool, *options, url], check=True, capture_output=True, timeout=240).stdout
    except NoPostgres as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.postgres
def test_the_real_pg_dump_in_each_format(dump: Callable[..., bytes]) -> None:
    for name, option in (("x.sql", "-Fp"), ("x.dump", "-Fc"), ("x.tar", "-Ft")):
        data = dump(option)
        assert problem(name, data) == ""
        assert problem(name, data[: len(data) // 2]).startswith(f"{name} is ")
    custom = dump("-Fc")
    assert problem("x.dump.gz", gzip.compress(custom)) == ""
    for length in (20, len(custom) // 2, len(custom) * 9 // 10):
        assert "pg_restore" in problem("x.dump", custom[:length]), length


@pytest.mark.postgres
def test_without_pg_restore_its_format_is_not_checked(dump: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump("-Fc")
    monkeypatch.setattr(dump_checks, "_pg_restore", lambda: "")
    assert problem("x.dump", data) == problem("x.dump", data[: len(data) // 2]) == ""
