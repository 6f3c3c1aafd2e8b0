"""`make test`: linters, types, import rules, then the tests on SQLite (the quick part) and all of them on PostgreSQL.

Prints how long each part took. pytest's own summary of the last part comes last. Where CI=true, a missing PostgreSQL,
Docker, bubblewrap or browser is a failure; elsewhere it is a skip that says what to install.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
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
#: On SQLite everything that has to do with the database; what has not is tested once, in the part on PostgreSQL.
QUICK = "not no_database and not docker and not browser and not long and not on_postgresql"
#: Tests that fork are run once, on SQLite, and so is what is told to be the same for any database and quicker there.
ALL = "not long and not forks and not on_sqlite"
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
    parser.add_argument(
        "--coverage", action="store_true", help="only the part on PostgreSQL, measured: 90 % of the lines at least"
    )
    parser.add_argument("--long", action="store_true", help="the longer forms, on SQLite and on PostgreSQL")
    options = parser.parse_args()
    times: list[tuple[str, float]] = []

    def part(name: str, action: Callable[[], None]) -> None:
        begun = time.monotonic()
        print(f"--- {name}", flush=True)
        action()
        times.append((name, time.monotonic() - begun))

    try:
        with ExitStack() as stack:
            if not options.long and not options.coverage:
                part("linters, types, import rules, migrations", lint)
            if options.only == "lint":
                return 0
            url = ""
            if not options.quick:
                try:
                    url = stack.enter_context(postgres())
                except NoPostgres as problem:
                    if CI:
                        raise
                    print(f"No part on PostgreSQL: {problem}")
            if options.long:
                part("long forms, SQLite", lambda: pytest("long", "", ["-s"], workers=0))
                if url:
                    part("long forms, PostgreSQL", lambda: pytest("long", url, ["-s"], workers=0))
            elif options.coverage:
                part("coverage", lambda: pytest("not long and not forks", url, COVERAGE))
            else:
                marks = QUICK if url or options.quick else "not long"
                part("tests, SQLite", lambda: pytest(marks, "", []))
                if url:
                    told(times)
                    part("tests, PostgreSQL", lambda: pytest(ALL, url, []))
    except (Failed, NoPostgres) as error:
        print(f"make test: {error}", file=sys.stderr)
        return 1
    return 0


def told(times: list[tuple[str, float]]) -> None:
    for name, seconds in times:
        print(f"{seconds:7.1f} s  {name}", flush=True)


def lint() -> None:
    environment = {**os.environ, "CC_CI_ENV_FILE": "", "CC_CI_DATA_DIR": str(PROJECT / "var" / "lint")}
    running = {
        name: subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in LINT.items()
    }
    bad = []
    for name, process in running.items():
        output, _ = process.communicate(timeout=600)
        if process.returncode:
            bad.append(name)
            print(f"{name}:\n{output}")
    if bad:
        raise Failed(f"{', '.join(bad)} found something")


#: More than cores: a good part of the tests waits for processes, deployments and pages.
def pytest(marks: str, url: str, more: list[str], workers: int = 3) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, *more]
    if workers:
        # Containers, browsers and killed processes share two cores: what fails is tried once more, and told as a rerun.
        command += ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder", "--reruns", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if url:
        environment["DATABASE_URL"] = url
    done = subprocess.run(command, cwd=PROJECT, env=environment, check=False)
    if done.returncode:
        raise Failed("tests failed")


if __name__ == "__main__":
    sys.exit(main())
