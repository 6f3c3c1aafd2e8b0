"""Text from outside stays text, wherever it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from controlplane.untrusted import ZERO_WIDTH, code_block, commit, markdown, mention, plain, web_address
from runs import commands
from tests.markdown_reader import READER, acts, hostile, raw_commands, shown

anything = st.one_of(hostile, st.text(max_size=300))


def often(check: Callable[..., None], examples: int) -> None:
    settings(max_examples=examples, database=None)(check)()


form = pytest.mark.parametrize("examples", [200, pytest.param(1500, marks=pytest.mark.long)], ids=["usual", "long"])


@form
def test_a_line_is_one_paragraph_of_words_and_nothing_in_it_acts(examples: int) -> None:
    @given(anything)
    @example("@\u200dalice")  # a mention, once the invisible character between is gone
    @example("1. x")
    @example("- x")
    @example("---")
    @example("a@b.cd")
    @example("1a2b3c4d5eABC-7")  # a piece of it is not to be one of those
    @example("x:/\u200d/evil.example")
    def check(text: str) -> None:
        line = markdown(text)
        for document in (line, f"Reason: {line}", f"x {line} y", f"{line}, {line}"):
            tokens = READER.parse(document)
            if document.strip():
                assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
                assert {child.type for child in tokens[1].children or []} <= {"text"}
            assert not +acts(shown(document))
            assert not raw_commands(document)
            assert commands.parse(document) is None

    often(check, examples)


@form
def test_a_line_stays_in_its_place(examples: int) -> None:
    """In a heading, a cell, a block of HTML, an attribute, an element, a list and a link: all that is ours, and no more."""

    @given(anything)
    def check(text: str) -> None:
        for around in (
            "### {} failed",
            "| a | b |\n|---|---|\n| {} | x |",
            '<details title="{}"><summary>{}</summary>\n\nx\n\n</details>',
            "- <code>{}</code>\n- x",
            "**{}** and **{}**",
            "[x {} y](https://ours.example/)",
        ):
            assert around.count("{}")
            found, wanted = shown(around.replace("{}", markdown(text))), shown(around.replace("{}", "x"))
            assert [element[0] for element in found.elements] == [element[0] for element in wanted.elements]
            assert not +acts(found)

    often(check, examples)


@form
def test_what_is_no_markdown_is_one_line_too(examples: int) -> None:
    @given(anything, st.integers(2, 50))
    def check(text: str, limit: int) -> None:
        line = plain(text, limit)
        assert "\n" not in line and all(char.isprintable() or char == ZERO_WIDTH for char in line)
        assert len(line.replace(ZERO_WIDTH, "")) <= limit
        assert not re.match(r"[!/.@#+-]\w", line)
        for pattern in (r"@\w", r"![A-Za-z0-9]", r"#\d", r"://", r"(?<![0-9A-Za-z])[0-9a-f]{7,64}(?![0-9A-Za-z])"):
            assert not re.search(pattern, line)

    often(check, examples)


@form
def test_a_fence_cannot_be_closed_from_inside_and_holds_no_command(examples: int) -> None:
    @given(anything)
    def check(text: str) -> None:
        block = code_block(text)
        tokens = MarkdownIt("commonmark").parse(f"{block}\n\nafter")
        assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
        assert not +acts(shown(block))
        assert not raw_commands(block)

    often(check, examples)


def test_it_is_still_read_by_people() -> None:
    name = "tests/test_page.py::TestLogin::test_page[chromium-1]"
    page = shown(markdown(name))
    assert "".join(page.words).strip() == name
    assert markdown("custom: 1 of 2 tests failed, see extra/heavy.") == "custom: 1 of 2 tests failed, see extra/heavy."
    assert len(markdown("x" * 1000)) == 500
    assert code_block("a\n\tb\r\nc") == "```text\na\n\tb\nc\n```"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://git.example.org/o/r/pulls/1", "https://git.example.org/o/r/pulls/1"),
        ("http://[::1]:3000/o/r", "http://[::1]:3000/o/r"),
        (
            "https://git.example.org/a) ![x](http://evil.example",
            "https://git.example.org/a%29%20%21%5Bx%5D%28http://evil.example",
        ),
        ("https://git.example.org/a\n\n!testme", "https://git.example.org/a%21testme"),
        ("https://git.example.org@evil.example/", ""),
        ("javascript:alert(1)", ""),
        ("//evil.example", ""),
        ("https://[", ""),
        ("", ""),
    ],
)
def test_an_address_stays_in_its_link(url: str, safe: str) -> None:
    assert web_address(url).startswith(safe) and bool(safe) == bool(web_address(url))
    if safe:
        tokens = READER.parse(f"[x]({web_address(url)}/commits/1)")
        assert [child.type for child in tokens[1].children or []] == ["link_open", "text", "link_close"]


def test_who_is_told_and_which_commit_is_meant() -> None:
    assert mention("alice-2.b") == "@alice-2.b"
    assert "@a" not in mention("alice\n\n!testme") and "\n" not in mention("alice\n\n!testme")
    assert (commit("1a2b3c4"), commit("x"), commit("1a2b`"), commit("")) == ("1a2b3c4", "", "", "")
