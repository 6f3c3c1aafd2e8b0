"""What a comment asks for."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runs import commands
from runs.commands import COMMIT, OPTIONS, VERBS, Command, Problem, parse, table
from runs.harness.stage_table import DEFAULT_STAGES, STAGES


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
        ("!testme Retry  ALL.", Command("retry all", line="!testme Retry  ALL.")),
        ("!testme status", Command("status", line="!testme status")),
        ("!testme\n---\nmy signature", Command("run", line="!testme")),
        ("see `code`\n!testme", Command("run", line="!testme")),
        ("!testme\n!testme", Command("run", line="!testme")),
        ("!testme.", Command("run", line="!testme.")),
        ("!testme!", Command("run", line="!testme!")),
        ("!testme…", Command("run", line="!testme…")),
        ("!testme status.", Command("status", line="!testme status.")),
        ("!testme 1234567!", Command("run", "1234567", line="!testme 1234567!")),
        ("**!testme**\n\n!testme", Command("run", line="!testme")),
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
        r"\!testme",
        "&#33;testme",
        "[!testme](http://example.org)",
        "!test me",
        "@cc-ci testme",
        "@cc-ci please !testme",
        "@cc-ci !testmexyz",
        "~~!testme~~",
        "**see\n!testme\nhere**",
        "> **!testme**",
        "- @cc-ci !testme",
        "`@cc-ci !testme`",
        ":exclamation:testme",
        "\u200b!testme",
        "!test\u00adme",
        "!testme\u200b",
        "![!testme](z)",
        '[x](y "!testme")',
        "<https://example.org/!testme>",
        "- [ ] !testme",
        "| !testme |\n|---|",
    ],
)
def test_nothing(body: str) -> None:
    assert parse(body) is None


@pytest.mark.parametrize(
    ("body", "nearest"),
    [
        ("**!testme**", "!testme"),
        ("*!testme*", "!testme"),
        ("__!testme__", "!testme"),
        ("***!testme***.", "!testme"),
        ("**!testme status**", "!testme status"),
        ("Fine.\n**!testme**\nThank you", "!testme"),
        ("@cc-ci !testme", "!testme"),
        ("@cc-ci: !testme help", "!testme help"),
        ("@alice, !TestMe --stages install", "!testme"),
        ("**!testme** it is", "!testme"),
        ("!testme?", "!testme"),
    ],
)
def test_what_is_nearly_a_command_gets_a_reply_and_is_not_done(body: str, nearest: str) -> None:
    found = parse(body)
    assert isinstance(found, Problem)
    assert found.nearest == nearest


def test_what_nearly_asks_is_looked_for_in_the_first_64_kb_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it costs much, and anybody may write it: this is before it is asked who wrote it."""
    read: list[int] = []
    plain_lines = commands.plain_lines

    def counted(text: str, *arguments: Any, **more: Any) -> list[str]:
        read.append(len(text))
        return plain_lines(text, *arguments, **more)

    monkeypatch.setattr(commands, "plain_lines", counted)
    assert parse("x !testme " + "*" * 1_000_000) is None
    assert read[1:] == [64 << 10]
    assert isinstance(parse("**!testme**\n\n" + "x" * 100_000), Problem)
    assert isinstance(parse("x" * 100_000 + "\n\n!testme"), Command)


#: What a reader does not see as a line of the comment, though a line of what was written is the command.
HIDDEN = {
    "the title of a link": '[x](y "\n!testme\n")',
    "the title of a link by a reference": "[x](y '\n!testme\n')",
    "the text for a picture": "![\n!testme\n](z)",
    "the text for a picture with a bracket": "![a\\]\n!testme\n](z)",
    "the title of a picture": '![x](z "\n!testme\n")',
    "the name of a reference": "[x][\n!testme\n]\n\n[!testme]: /y",
    "the title of a definition": "[y]: /y '\n!testme\n'",
    "a link": "[a\n!testme\nb](/x)",
    "a link under many brackets": "[" * 40 + "x" + "]" * 40 + '(y "\n!testme\n")',
    "an attribute": '<span title="\n!testme\n">x</span>',
    "an attribute in text": 'a <i title="\n!testme\n">x</i>',
    "an attribute over blank lines": '<div title="\n\n!testme\n\n">x</div>',
    "a comment": "a <!--\n!testme\n--> b",
    "a comment over blank lines": "<!--\n\n!testme\n\n-->",
    "a comment that does not end": "<!--\n\n!testme",
    "an instruction": "<?\n\n!testme\n\n?>",
    "something folded away": "<details><summary>More</summary>\n\n!testme\n\n</details>",
    "something folded away in text": "a <details>\n!testme\n</details>",
    "something folded away in a list": "- <details>\n\n!testme",
    "something folded away by a row of a table": "| a |\n|---|\n    <details>\n\n!testme",
    "an element that is taken out": "<object>\n\n!testme\n\n</object>",
    "an element that does not end": "<iframe>\n\n!testme",
    "another element": "<div>\n\n!testme\n\n</div>",
    "elements that cross": "<details><table></details>\n\n!testme",
    "a cell of a table in HTML": "<table><tr><td>\n\n!testme\n\n</td></tr></table>",
    "a footnote": "[^1]: a note\n!testme",
    "a footnote of one word": "[^1]: note\n!testme",
    "a footnote of two paragraphs": "[^1]: a note\n\n    more of it\n!testme",
    "a footnote with a table": "[^1]: a | b\n--|--\n!testme",
    "code behind a footnote": "[^1]: a note\n```\n\n!testme\n```",
    "the description of a term": "a term\n: with words\n!testme",
    "HTML in the description of a term": "a term\n: <!-- \n\n!testme",
    "settings of the page": "---\na: b\n!testme: c\n---\n",
    "a table": "a | b\n--|--\n!testme",
    "a formula": "$$\n!testme\n$$",
    "a formula over blank lines": "$$\n\n!testme\n\n$$",
    "what is struck out": "~~a\n!testme\nb~~",
    "what is struck out by one": "~a\n!testme\nb~",
    "bold text": "**a\n!testme\nb**",
    "code in a line": "`a\n!testme\nb`",
    "a quote that goes on": "> a\n!testme",
    "a list that goes on": "- a\n!testme",
}


@pytest.mark.parametrize("where", HIDDEN)
def test_what_is_not_shown_as_a_line_of_its_own_is_no_command(where: str) -> None:
    assert parse(HIDDEN[where]) is None
    assert parse(f"Look at this.\n\n{HIDDEN[where]}") is None


# --- Markdown made of parts

#: A command in the midst of a paragraph, on a line of its own as it was written.
WRAPPED = [
    *('[x](y "\n{}\n")', "![\n{}\n](z)", '![x](z "\n{}\n")', "[x][\n{}\n]", "[a\n{}\nb](/x)", "![a\\]\n{}\n](z)"),
    *('<span title="\n{}\n">x</span>', "<!--\n{}\n-->", "<b>\n{}\n</b>", "<T a='\n{}\n'>"),
    *("`\n{}\n`", "``\n{}\n``", "**a\n{}\nb**", "_a\n{}\nb_", "~~a\n{}\nb~~", "~a\n{}\nb~"),
]
#: Lines that a reader takes for no command, and such as change nothing of what is around them.
WORDS = [
    *(
        "\\{}",
        "&#33;testme",
        "**{}**",
        "`{}`",
        "[{}](/x)",
        "![{}](/x)",
        "@you {}",
        ":exclamation:testme",
        "so {}",
        "{}x",
        "\u200b{}",
    ),
    *("Nice work.", "see [this](/x '{}')", "**bold**", "<b>x</b> and <br>", "1 < 2 & 3 > 2", "a\\*b", "[^1]", "<https://a.b/>"),
]
#: Lines that a reader takes for one.
COMMANDS = ["{}", "{} help", " {}", "{}  ", "{} <b>help</b>", "\u00a0{}"]
#: Blocks that begin and end by themselves, with the command hidden in them or not on a line of the comment's own.
BLOCKS = [
    *("> quoted\n{}", "- item\n{}", "1. item\n\n   {}", "- [ ] {}", "```\n{}\n```", "~~~\n\n{}\n\n~~~", "    {}", "# {}", "***"),
    *("| a |\n|---|\n| {} |", "a | b\n--|--\n{}", "[^1]: a note\n{}", "[^2]: a note\n\n    {}", "[a]: /a '\n{}\n'"),
    *("<!--\n\n{}\n\n-->", "<div>\n\n{}\n\n</div>", "<details><summary>x</summary>\n\n{}\n\n</details>", "<pre>\n{}\n</pre>"),
    *("<div title='\n{}\n'>x</div>", "<table><tr><td>\n\n{}\n\n</td></tr></table>", "<object>\n\n{}\n\n</object>"),
    *("$$\n\n{}\n\n$$", "a term\n: with words\n{}", "> [!NOTE]\n> {}", "---\n\n***"),
]
#: Blocks that take in all that follows.
ENDLESS = [
    *("<!--\n{}", "```\n{}", "$$\n{}", "<details>\n\n{}", "<div title='\n\n{}", "<iframe>\n\n{}", "> <details>\n\n{}"),
    *("<pre>\n{}", "<table><tr><td>\n\n{}", "a term\n: <!-- \n{}", "<?\n\n{}"),
]


@st.composite
def paragraphs(draw: st.DrawFn) -> tuple[str, bool]:
    """A paragraph, and whether a command is a line of its own in it."""
    kinds = draw(st.lists(st.sampled_from([WORDS, WRAPPED, COMMANDS]), min_size=1, max_size=5))
    parts = [draw(st.sampled_from(kind)) for kind in kinds]
    lines = [f"so {part} it is" if part in WRAPPED else part for part in parts]
    return "\n".join(lines).replace("{}", "!testme"), COMMANDS in kinds


@st.composite
def comments(draw: st.DrawFn) -> tuple[str, bool]:
    """A comment, and whether a reader sees a command in it."""
    parts, shown = ["Look at this.", "[!testme]: /y"], False
    for block in draw(st.lists(st.one_of(st.sampled_from(BLOCKS).map(lambda text: (text, False)), paragraphs()), max_size=6)):
        parts, shown = [*parts, block[0]], shown or block[1]
    if draw(st.booleans()):
        parts += [draw(st.sampled_from(ENDLESS)), "{}"]
    text = draw(st.sampled_from(["\n\n", "\n\n\n", "\r\n\r\n"])).join(parts)
    return text.replace("{}", "!testme"), shown


@given(comments())
@settings(max_examples=500)
def test_a_command_counts_where_a_reader_sees_it_and_nowhere_else(comment: tuple[str, bool]) -> None:
    text, shown = comment
    found = parse(text)
    nearly = isinstance(found, Problem) and "plain text" in found.text  # that is answered, and not done
    assert (found is not None and not nearly) is shown, text


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
        ("!testme retry al", VERBS["retry"].form),
        ("!testme retry all please", VERBS["retry"].form),
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
    assert len(table()) == 12
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
@settings(max_examples=300)
def test_never_an_exception(before: str, command: str, after: str) -> None:
    result = parse(before + "\n" + command + after)
    assert result is None or isinstance(result, Command | Problem)
    if isinstance(result, Command):
        assert set(result.stages) <= set(STAGES)
        assert result.stages


@given(st.lists(st.sampled_from(STAGES), min_size=1, max_size=8), st.booleans())
@settings(max_examples=100)
def test_stages_come_in_their_order_and_once(names: list[str], extra: bool) -> None:
    command = parse(f"!testme --stages {','.join(names)}{' --extra-tests' if extra else ''}")
    assert isinstance(command, Command)
    assert command.stages == tuple(stage for stage in STAGES if stage in names or (extra and stage == "extra"))


@pytest.mark.parametrize("piece", ["[", "`", "*_", "<!--", "> ", "- ", "![](", "\\", "!testme ", "💥", "a\u0301", "&#", "```\n"])
def test_forty_kilobytes_of_anything(piece: str) -> None:
    begun = time.monotonic()
    parse("!testme\n" + piece * (40_000 // len(piece)))
    parse(piece * (40_000 // len(piece)) + "\n!testme")
    # No clock decides here, but a parser that needs minutes would hang the suite: pytest-timeout stops it.
    print(f"{piece!r}: {time.monotonic() - begun:.2f} s")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("!testme --from 1.0.0+1", "1.0.0+1"),
        ("!testme --from=1.0.0+2.4-alpine --extra-tests", "1.0.0+2.4-alpine"),
        ("!testme —from 1.0.0+1.", "1.0.0+1"),
        ("!testme", ""),
    ],
)
def test_the_version_to_upgrade_from(text: str, version: str) -> None:
    command = parse(text)
    assert isinstance(command, Command)
    assert (command.verb, command.upgrade_from) == ("run", version)


@pytest.mark.parametrize(
    "text", ["!testme --from", "!testme --from latest", "!testme --from 1.0.0", "!testme --from --extra-tests"]
)
def test_what_is_no_version_to_upgrade_from(text: str) -> None:
    problem = parse(text)
    assert isinstance(problem, Problem)
    assert problem.nearest == "!testme --from 1.0.0+1"
