"""What a comment asks for."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runs.chatops import COMMIT, OPTIONS, VERBS, Command, Problem, parse, table
from runs.harness.protocol import DEFAULT_STAGES, STAGES


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("!testme", Command("run", line="!testme")),
        ("!testme\r\n", Command("run", line="!testme")),
        ("  !testme  ", Command("run", line="!testme")),
        ("Looks good.\r\n!testme\r\nThank you 🎉", Command("run", line="!testme")),
        ("Looks good.\r\n\r\n!testme", Command("run", line="!testme")),
        ("!TestMe", Command("run", line="!TestMe")),
        ("!testme --extra-tests", Command("run", "", (*DEFAULT_STAGES, "extra"), "!testme --extra-tests")),
        ("!testme —extra-tests", Command("run", "", (*DEFAULT_STAGES, "extra"), "!testme —extra-tests")),
        ("!testme --stages install", Command("run", "", ("install",), "!testme --stages install")),
        ("!testme --stages=custom,install", Command("run", "", ("install", "custom"), "!testme --stages=custom,install")),
        ("!testme --stages install, custom", Command("run", "", ("install", "custom"), "!testme --stages install, custom")),
        ("!testme --stages extra", Command("run", "", ("extra",), "!testme --stages extra")),
        ("!testme 1234567", Command("run", "1234567", line="!testme 1234567")),
        (f"!testme {'A' * 40}", Command("run", "a" * 40, line=f"!testme {'A' * 40}")),
        ("!testme abcdef0 --extra-tests", Command("run", "abcdef0", (*DEFAULT_STAGES, "extra"), "!testme abcdef0 --extra-tests")),
        ("!testme help", Command("help", line="!testme help")),
        ("!testme cancel", Command("cancel", line="!testme cancel")),
        ("!testme retry", Command("retry", line="!testme retry")),
        ("!testme status", Command("status", line="!testme status")),
        ("!testme\n---\nmy signature", Command("run", line="!testme")),
        ("see `code`\n!testme", Command("run", line="!testme")),
        ("!testme\n!testme", Command("run", line="!testme")),
    ],
)
def test_a_command(body: str, expected: Command) -> None:
    assert parse(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "Nice work.",
        "!testmexyz",
        "!testme! now",
        "please !testme",
        "> !testme",
        "> a quote\n!testme",  # Markdown draws this line into the quote
        "```\n!testme\n```",
        "~~~\n!testme\n~~~",
        "```\n!testme",
        "    !testme",
        "`!testme`",
        "`a code\n!testme\nspan`",
        "<!--\n!testme\n-->",
        "text <!-- \n!testme\n --> text",
        "<pre>\n!testme\n</pre>",
        "- !testme",
        "1. !testme",
        "# !testme",
        "**!testme**",
        r"\!testme",
        "&#33;testme",
        "[!testme](http://example.org)",
        "!test me",
        "@cc-ci testme",
    ],
)
def test_nothing(body: str) -> None:
    assert parse(body) is None


@pytest.mark.parametrize(
    ("body", "nearest"),
    [
        ("!testme --extra", OPTIONS["--extra-tests"].form),
        ("!testme --extra-test", OPTIONS["--extra-tests"].form),
        ("!testme --stage install", OPTIONS["--stages"].form),
        ("!testme --stages instal", "!testme --stages install"),
        ("!testme --stages install,upgrad", "!testme --stages install,upgrade"),
        ("!testme --stages nonsense", OPTIONS["--stages"].form),
        ("!testme --stages", OPTIONS["--stages"].form),
        ("!testme --stages ,", OPTIONS["--stages"].form),
        ("!testme halp", VERBS["help"].form),
        ("!testme cancle", VERBS["cancel"].form),
        ("!testme help me", VERBS["help"].form),
        ("!testme abc123", COMMIT.form),
        ("!testme 1234567 89abcde", "!testme"),
        ("!testme please", "!testme"),
        ("!testme\n!testme --extra-tests", "!testme"),
    ],
)
def test_a_problem_names_the_nearest_valid_form(body: str, nearest: str) -> None:
    problem = parse(body)
    assert isinstance(problem, Problem)
    assert problem.nearest.startswith(nearest)
    assert isinstance(parse(problem.nearest), Command), "what we propose must be valid itself"


def test_every_form_in_the_table_is_understood() -> None:
    assert len(table()) == 9
    for entry in table():
        assert isinstance(parse(entry.form), Command), entry.form


def test_the_docs_hold_the_table() -> None:
    from pathlib import Path

    docs = (Path(__file__).parents[2] / "docs" / "enroll-recipe.md").read_text()
    for entry in table():
        assert f"| `{entry.form}` | {entry.text} |" in docs


def test_a_strangers_word_cannot_call_people_or_end_the_code() -> None:
    problem = parse("!testme --`@everyone`<b>|\u202e")
    assert isinstance(problem, Problem)
    assert "@" not in problem.text
    assert problem.text.count("`") == 2
    assert "\u202e" not in problem.text


@given(
    st.text(max_size=300), st.sampled_from(["!testme", "!testme --stages ", "!testme --extra-tests ", ""]), st.text(max_size=100)
)
@example("`" * 50, "!testme", "`" * 49)
@example("\ud800", "!testme", "\0")
@settings(max_examples=300, deadline=None)
def test_never_an_exception(before: str, command: str, after: str) -> None:
    result = parse(before + "\n" + command + after)
    assert result is None or isinstance(result, Command | Problem)
    if isinstance(result, Command):
        assert set(result.stages) <= set(STAGES)
        assert result.stages


@given(st.lists(st.sampled_from(STAGES), min_size=1, max_size=8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_stages_come_in_their_order_and_once(names: list[str], extra: bool) -> None:
    command = parse(f"!testme --stages {','.join(names)}{' --extra-tests' if extra else ''}")
    assert isinstance(command, Command)
    assert command.stages == tuple(stage for stage in STAGES if stage in names or (extra and stage == "extra"))


@pytest.mark.parametrize("piece", ["[", "`", "*_", "<!--", "> ", "- ", "![](", "\\", "!testme ", "💥", "a\u0301", "&#", "```\n"])
def test_a_hundred_kilobytes_of_anything(piece: str) -> None:
    begun = time.monotonic()
    parse("!testme\n" + piece * (100_000 // len(piece)))
    parse(piece * (100_000 // len(piece)) + "\n!testme")
    # No clock decides here, but a parser that needs minutes would hang the suite: pytest-timeout stops it.
    print(f"{piece!r}: {time.monotonic() - begun:.2f} s")
