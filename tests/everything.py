"""`make test`: linters, types, import rules, all tests on SQLite, and on PostgreSQL those that differ by database.

All of it runs at the same time. What the linters and the part on PostgreSQL print comes when they end, with the time each took.
The last line is pytest's summary, of both parts together.
Where CI=true, a missing PostgreSQL, Docker, bubblewrap or browser is a failure; elsewhere it is a skip that says what to install.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.postgres import NoPostgres, postgres

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CI = os.environ.get("CI") == "true"

LINT: dict[str, list[str]] = {
    "ruff check": [str(BIN / "ruff"), "check", "--quiet"],
    "ruff format": [str(BIN / "ruff"), "format", "--check", "--quiet"],
    "mypy": [str(BIN / "mypy")],
    "import-linter": [str(BIN / "lint-imports"), "--no-cache"],
    "migrations": [sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"],
}
#: What one who changes a line waits for: neither what waits for processes, nor what looks at many examples.
QUICK = "not slow and not crash and not docker and not browser and not long"
SQLITE = "not long and not on_postgresql"
POSTGRESQL = "not long and (both_databases or on_postgresql)"
#: Measuring takes half as long again, so it is a command of its own.
COVERAGE = [
    *(f"--cov={name}" for name in ("controlplane", "enrollment", "runs", "infra")),
    "--cov-report=term",
    "--cov-fail-under=90",
]


class Failed(Exception):
    """A part failed; its output has been shown."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.everything", description=__doc__)
    parser.add_argument("--only", choices=["lint"], help="just this part")
    parser.add_argument("--quick", action="store_true", help="linters, and the quick part on SQLite")
    parser.add_argument("--coverage", action="store_true", help="the tests on PostgreSQL, measured: 90 % of the lines at least")
    parser.add_argument("--long", action="store_true", help="the longer forms, on SQLite and on PostgreSQL")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        with ExitStack() as stack:
            url = ""
            if not options.quick and not options.only:
                try:
                    url = stack.enter_context(postgres())
                except NoPostgres as problem:
                    if CI:
                        raise
                    print(f"No part on PostgreSQL: {problem}")
            if options.long:
                pytest("long", "", "-s")
                if url:
                    pytest("long", url, "-s")
            elif options.coverage:
                pytest("not long and not forks", url, *COVERAGE, workers=3)
            else:
                with ThreadPoolExecutor() as pool:
                    others = [beside(pool, "linters, types, import rules, migrations", lint)]
                    if not options.only:
                        compile_once()
                        if url:
                            on_postgresql = partial(pytest, POSTGRESQL, url, workers=1, aloud=False)
                            others.append(beside(pool, "tests, PostgreSQL", on_postgresql))
                        marks = QUICK if options.quick else SQLITE if url else "not long"
                        others.append(beside(pool, "tests, SQLite", lambda: pytest(marks, "", workers=3 if options.quick else 7)))
                for other in others:
                    other.result()
    except (Failed, NoPostgres) as error:
        print(f"make test: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if COUNTS:
            print(
                f"{', '.join(f'{count} {name}' for name, count in COUNTS.items())} in {time.monotonic() - begun:.2f}s", flush=True
            )
    return 0


def beside(pool: ThreadPoolExecutor, name: str, action: Callable[[], None]) -> Future[None]:
    """Run it while others run, and say how long it took."""

    def timed() -> None:
        begun = time.monotonic()
        try:
            action()
        finally:
            print(f"\n{time.monotonic() - begun:7.1f} s  {name}", flush=True)

    return pool.submit(timed)


def lint() -> None:
    environment = {**os.environ, "CC_CI_ENV_FILE": "", "CC_CI_DATA_DIR": str(PROJECT / "var" / "lint")}
    running = {
        name: subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in LINT.items()
    }
    bad = []
    for name, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            bad.append(name)
            print(f"{name}:\n{output}")
    if bad:
        raise Failed(f"{', '.join(bad)} found something")


def compile_once() -> None:
    """In a new clone let one process compile the tests: else each worker does so, all at the same time."""
    if not any((PROJECT / "tests" / "__pycache__").glob("*-pytest-*.pyc")):
        subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only"], cwd=PROJECT, capture_output=True, check=False)


#: pytest's last line, such as `2 failed, 81 passed, 3 skipped in 12.31s`.
LAST = re.compile(r"(?:\d+ \w+, )*\d+ \w+ in [\d.]+s")
COUNTS: Counter[str] = Counter()


def pytest(marks: str, url: str, *more: str, workers: int = 0, aloud: bool = True) -> None:
    """Run the tests that are marked so; with `aloud` one sees how far they are, else what they print comes at the end."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, *more]
    if workers:
        command += ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder"]
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if url:
        environment["DATABASE_URL"] = url
    kept = []
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout
        while piece := run.stdout.read(1) if aloud else run.stdout.read():
            kept.append(piece)
            if aloud:
                sys.stdout.write(piece)
                sys.stdout.flush()
    if not aloud:
        print(f"\n{''.join(kept)}", flush=True)
    last = "".join(kept).strip().rpartition("\n")[2]
    if LAST.search(last):
        COUNTS.update({name: int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0])})
    if run.returncode:
        raise Failed("tests failed")


if __name__ == "__main__":
    sys.exit(main())
