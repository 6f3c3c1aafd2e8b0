"""`make test-real FORGE=http://… [DRONE=…] [WOODPECKER=…]`: what tests of the main path find at a real forge and CI servers.

The same tests run against the fake forge in the real one's version, then against the real one. A test that fails at the real
one alone shows a difference: it belongs into the fake forge. The real one is left as it was, but for numbers that count up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import requests

from enrollment.fakeforge.features import VERSIONS

PROJECT = Path(__file__).resolve().parents[2]
#: The main job, whose code is whose, rights, reviews, renames and transfers, reports, webhooks, logins.
WHERE = [
    *(
        f"tests/enrollment/test_{name}.py"
        for name in (
            *("trust", "whose_code", "policies", "enrolling", "polling", "rights", "webhooks", "real_deliveries"),
            "forge_login",
        )
    ),
    *(f"tests/runs/test_{name}.py" for name in ("intake", "approval", "reporting", "allowances", "starting", "visitors")),
]
_NEEDED = """{name} is not set.

  FORGE        the address of a Gitea or Forgejo that is there for tests alone, which reaches this machine with its webhooks
  FORGE_ADMIN  its administrator's login, as name:password, in the environment; not `root`, whom the tests make
  DRONE        if wanted, the address of a Drone server that works with this forge (CONTRIBUTING.md)
  WOODPECKER   the same for a Woodpecker server
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test-real", description=__doc__)
    parser.add_argument("tests", nargs="*", help="files of tests; all with a forge by default")
    options = parser.parse_args()
    url, login = os.environ.get("FORGE", ""), os.environ.get("FORGE_ADMIN", "")
    if not url or ":" not in login:
        print("Skipped: " + _NEEDED.format(name="FORGE_ADMIN" if url else "FORGE"), file=sys.stderr)
        return 0
    try:
        answer = requests.get(f"{url}/api/v1/version", timeout=20)
        version = str(answer.json()["version"])
    except (requests.RequestException, ValueError, KeyError) as error:
        print(f"No forge answers at {url}: {error}", file=sys.stderr)
        return 1
    tests = options.tests or WHERE
    near = nearest(version)
    print(f"The fake forge as {near}:")
    sandbox = run(tests, SANDBOX_VERSION=near)
    print(f"\n{url}, which is {version}:")
    real = run(tests, SANDBOX_VERSION=near, REAL_FORGE=url)
    return tell(sandbox, real) | with_ci_servers()


def with_ci_servers() -> int:
    """Run the tests that need a Drone or a Woodpecker, too. Returns the exit code."""
    given = {name: os.environ.get(name, "") for name in ("DRONE", "WOODPECKER")}
    for name in given:
        if not given[name]:
            print(f"\nSkipped: whole runs as builds of a real {name.capitalize()}, because {name} is not set.")
    if not any(given.values()):
        return 0
    print(f"\nBuilds at {' and '.join(url for url in given.values() if url)}:")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/real/test_with_ci_server.py"]
    return int(bool(subprocess.run(command, cwd=PROJECT).returncode))


def nearest(version: str) -> str:
    """The newest version of the fake forge that is not newer, of the same kind."""
    same = [known for known in VERSIONS if ("gitea-" in known) == ("gitea-" in version)]
    return max((known for known in same if _numbers(known) <= _numbers(version)), key=_numbers, default=same[0])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def run(tests: list[str], **environment: str) -> dict[str, tuple[str, str]]:
    """The outcome of each test, and why."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes")
        outcomes.touch()
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "tests.real.only"]
        command += ["-m", "not long and not docker and not browser", *tests]
        subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment, "REAL_OUTCOMES": str(outcomes)})
        rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    return {name: (outcome, why) for name, outcome, why in rows}


def tell(sandbox: dict[str, tuple[str, str]], real: dict[str, tuple[str, str]]) -> int:
    """Print what differs. Returns the exit code."""
    different = [
        name for name, (outcome, _) in real.items() if outcome == "failed" and sandbox.get(name, ("", ""))[0] == "passed"
    ]
    both = [name for name, (outcome, _) in real.items() if outcome == "failed" and sandbox.get(name, ("", ""))[0] == "failed"]
    counts = Counter(outcome for outcome, _ in real.values())
    print(f"\nAt the real forge: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}.")
    for why, count in Counter(why for outcome, why in real.values() if outcome == "skipped").most_common():
        print(f"  {count} skipped: {why}")
    for title, names in (("It does differently from the fake forge", different), ("Fails at both, of this version", both)):
        if names:
            print(f"\n{title}:")
            for name in names:
                print(f"  {name}\n      {real[name][1][:200]}")
    return 1 if different or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
