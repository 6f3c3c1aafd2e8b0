"""`make hostile`: all that a stranger could try, tried on this machine, and a table of what held.

For an operator who wants to know it before trusting the machine. Each file below is a part of the suite; its first line says
what is tried. `--write` keeps the table in docs/security.md.
"""

from __future__ import annotations

import argparse
import ast
import collections
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs" / "security.md"
FILES = (
    "enrollment/test_whose_code.py",
    "enrollment/test_trust_worst_moment.py",
    "runs/test_approval.py",
    "runs/test_allowances.py",
    "runs/test_chatops.py",
    "infra/deployers/compose/test_environment.py",
    "infra/deployers/compose/test_render.py",
    "infra/deployers/compose/test_hostile_compose.py",
    "infra/deployers/compose/test_admission.py",
    "infra/deployers/compose/test_admission_of_strangers.py",
    "infra/deployers/compose/test_admission_properties.py",
    "infra/deployers/compose/test_templates.py",
    "infra/deployers/compose/test_routes.py",
    "infra/deployers/compose/test_bounds.py",
    "infra/deployers/test_readback.py",
    "infra/deployers/test_names.py",
    "infra/deployers/test_hungry_apps.py",
    "infra/deployers/test_egress.py",
    "infra/deployers/test_children.py",
    "infra/deployers/test_sandbox.py",
    "infra/deployers/test_limits.py",
    "infra/test_firewall.py",
    "e2e/test_firewall.py",
    "runs/harness/test_checkout.py",
    "runs/harness/test_bombs.py",
    "runs/harness/test_full_disk.py",
    "runs/harness/test_hostile.py",
    "test_patterns.py",
    "runs/test_render_hostile.py",
    "controlplane/test_untrusted.py",
    "controlplane/test_hostile_requests.py",
    "controlplane/test_slow_clients.py",
    "controlplane/test_logins.py",
)


class Counted:
    """Counts the outcomes of each file."""

    def __init__(self) -> None:
        self.found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.found[report.nodeid.partition("::")[0]][report.outcome] += 1


def what(file: str) -> str:
    """What a file tries: the first line of its docstring."""
    docstring = ast.get_docstring(ast.parse((PROJECT / "tests" / file).read_text())) or file
    return docstring.partition("\n")[0].rstrip(".").replace("|", "/")


def table(found: dict[str, collections.Counter[str]]) -> str:
    rows = ["| tried | tests | held |", "|---|---|---|"]
    for file in FILES:
        counts = found.get(f"tests/{file}", collections.Counter())
        held = "yes" if counts["passed"] and not counts["failed"] else "NO" if counts["failed"] else "not tried here"
        if counts["skipped"] and counts["passed"]:
            held += f", {counts['skipped']} not tried here"
        rows.append(f"| {what(file)} ([{Path(file).name}](../tests/{file})) | {counts['passed'] + counts['failed']} | {held} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/security.md")
    options = parser.parse_args()
    counted = Counted()
    files = [str(PROJECT / "tests" / file) for file in FILES]
    code = pytest.main(["-q", "--no-header", "-m", "not long", "--rootdir", str(PROJECT), *files], plugins=[counted])
    shown = table(counted.found)
    print(f"\n{shown}")
    if options.write:
        start, end = "<!-- hostile -->", "<!-- end of hostile -->"
        before, _, rest = DOCS.read_text().partition(start)
        DOCS.write_text(f"{before}{start}\n{shown}\n{end}{rest.partition(end)[2]}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
