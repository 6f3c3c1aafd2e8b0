"""A comment as a forge shows it, and what forges and bots find in it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

from hypothesis import strategies as st
from markdown_it import MarkdownIt

#: GFM with HTML and tables. Links are made of more than GFM does: also of `example.org`.
READER = MarkdownIt("gfm-like", {"html": True})

#: What acts in text: as Gitea, Forgejo and GitHub find it in what they have rendered, and bots in what they get.
ACTS = {
    "mention": r"(?<![A-Za-z0-9_])@[A-Za-z0-9_.-]",
    "address": r"[A-Za-z0-9._%+-]@[A-Za-z0-9]",
    "reference": r"(?:(?<![&\w])|(?<=[\w.-]))[#!]\d",
    "project": r"(?<![A-Za-z0-9])[A-Z][A-Z0-9]{0,9}-[1-9]",
    "commit": r"(?<![0-9A-Za-z])[0-9a-fA-F]{7,64}(?![0-9A-Za-z])",
    "link": r"(?i)[a-z][a-z0-9+.-]*://|(?<![a-z0-9])(?:www\.|(?:mailto|tel|magnet|javascript):[^\s\u200b])",
    "wiki": r"\[\[",
    "emoji": r":[a-z0-9_+-]+:",
    "command": r"(?<!\w)[!/.@][A-Za-z]",
}
#: The same in code, which forges leave alone and some bots do not.
ACTS_IN_CODE = {"mention": ACTS["mention"], "command": r"(?m)^\s*[!/.@+-][A-Za-z]|(?<!\w)![A-Za-z]"}

FRAGMENTS = [
    *("\n", "\n\n", "\r", "\r\n", "\u2028", "\u0085", "\x0b", "\t", "    ", "\\", " ", "\u200b", "\u200d", "\u202e", "\x1b[31m"),
    *("`", "```", "~~~", "````", "</details>", "</summary>", "<summary>", "<details>", "<!--", "-->", "]]>", "<?", "<![CDATA["),
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=y>",
        "<a href=//evil.example>",
        "</code>",
        "</pre>",
        "</td>",
        "<b",
        "&lt;",
    ),
    *(
        "&#33;",
        "&excl;",
        "\\!",
        "!",
        "@",
        "#",
        "/",
        ":",
        "[",
        "]",
        "(",
        ")",
        "|",
        "||",
        "*",
        "**",
        "_",
        "~~",
        "$",
        "$$",
        "^",
        "{",
        "}",
    ),
    *("\n# ", "\n> ", "\n- ", "\n1. ", "\n---\n", "\n===\n", "\n| a | b |\n|---|---|\n", "\n: ", "\n[x]: http://evil.example\n"),
    *(
        "[x](http://evil.example)",
        "![x](http://evil.example/x.png)",
        "[x][y]",
        "<http://evil.example>",
        "http://evil.example/a_b",
    ),
    *("https://", "www.evil.example", "evil.example", "mailto:a@b.cd", "alice@evil.example", "javascript:alert(1)", "tel:+123"),
    *("@alice", "@everyone", "@org/team", "@-a", "#12", "!12", "o/r#12", "o/r!12", "GH-12", "ABC-7", "1a2b3c4", "1a2b3c4d5e" * 4),
    *("o/r@1a2b3c4", ":tada:", ":white_check_mark:", "[[Home]]", "!testme", "!testme approve 1a2b3c4", "\n!testme cancel\n"),
    *(
        "/approve",
        "\n/lgtm",
        "\n.retest",
        "\nbors r+",
        "\n\nAll tests passed\n\n",
        "✅",
        "é",
        "x",
        "test_page",
        "1",
        "0.1",
        "％",
        "＠",
    ),
]
#: A text that wants out. Short, and mostly of what has a meaning somewhere.
hostile = (
    st.lists(
        st.one_of(
            st.sampled_from(FRAGMENTS),
            st.sampled_from(FRAGMENTS),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        ),
        min_size=1,
        max_size=8,
    )
    .map("".join)
    .filter(bool)
)


class Shown(HTMLParser):
    """A page of HTML: its elements in their order, its words, and its code."""

    VOID = ("br", "hr", "img")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.words: list[str] = [""]
        self.code: list[str] = [""]
        self._in: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(f"{name}={value}" for name, value in attrs)))
        if tag not in self.VOID:
            self._in.append(tag)
        # Only what makes a block of its own ends a run of words: `<b>!</b>testme` is read as one.
        self.words.append("") if tag not in ("b", "em", "strong", "code") else None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))
        assert self._in and self._in.pop() == tag, f"{tag} was not open"
        self.words.append("") if tag not in ("b", "em", "strong", "code") else None

    def handle_data(self, data: str) -> None:
        (self.code if "pre" in self._in else self.words)[-1] += data
        if "pre" in self._in:
            self.code.append("")

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.elements.append(("declaration", decl))

    handle_pi = unknown_decl = handle_decl


def shown(text: str) -> Shown:
    return Shown(READER.render(text))


def acts(page: Shown) -> Counter[str]:
    """What would act in the words and the code of a page: the kinds, and how often."""
    found: Counter[str] = Counter()
    for texts, patterns in ((page.words, ACTS), (page.code, ACTS_IN_CODE)):
        for kind, pattern in patterns.items():
            found[kind] += sum(len(re.findall(pattern, text)) for text in texts)
    return found


def raw_commands(text: str) -> Counter[str]:
    """Lines of a comment as it was sent that a bot which knows no Markdown takes for a command."""
    lines = re.split(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", text)
    return Counter(line.strip() for line in lines if re.match(r"\s*[!/.@+-][A-Za-z]", line))
