"""The table of stages, and what the documentation says of each."""

from __future__ import annotations

import re
from pathlib import Path

from runs.harness import stages
from runs.harness.stage_table import DEFAULT_STAGES, LADDER, STAGES, StageName, in_order

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_every_stage_has_its_function() -> None:
    assert tuple(stages.TABLE) == tuple(StageName)
    assert [function.__name__ for function in stages.TABLE.values()] == list(STAGES)


def test_every_stage_counts_for_one_rung_and_lint_for_none() -> None:
    assert [name for _, needed in LADDER for name in needed] == list(STAGES), "the rungs have the stages' order"
    assert LADDER[-1] == ("lint", ())


def test_stages_are_put_in_their_order_once() -> None:
    assert in_order(["extra", "install", "install", "nonsense"]) == ("install", "extra")


def test_the_documentation_has_a_row_for_every_stage() -> None:
    rows = re.findall(r"^\| \*(\w+)\* \| (.*)", (DOCS / "stages.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(STAGES)
    assert [name for name, text in rows if "off unless asked for" not in text] == list(DEFAULT_STAGES)


def test_the_documentation_has_every_rung_with_its_stages() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]+) \| (.*)", (DOCS / "verdicts.md").read_text(), re.MULTILINE)
    assert [(int(number), name) for number, name, _ in rows] == [(n, name) for n, (name, _) in enumerate(LADDER, 1)]
    for (_, _, text), (_, needed) in zip(rows, LADDER, strict=True):
        assert tuple(name for name in STAGES if f"*{name}*" in text) == needed


def test_the_documentation_names_the_stages_for_an_app_that_runs_already() -> None:
    text = re.search(r"With `--app`, the stages (.*) run your tests", (DOCS / "write-tests.md").read_text())
    assert text
    assert tuple(re.findall(r"\w+", text[1].replace(" and ", " "))) == tuple(name for name in StageName if name.existing_app)


def test_the_guide_for_tests_has_every_stage_with_its_hook() -> None:
    page = (DOCS / "write-tests.md").read_text()
    names = re.findall(r"^\| ([a-z, ]+) \|", page.partition("| stage | ")[2].partition("\n\n")[0], re.MULTILINE)
    assert ", ".join(names).split(", ") == list(STAGES)
    hooks = next(line for line in page.splitlines() if line.startswith("| `before_install(app)`"))
    assert re.findall(r"`before_(\w+)", hooks) == list(STAGES)
