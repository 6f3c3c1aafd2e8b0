"""No old word in messages, pages and docs (`python -m tests.vocabulary` prints them); and that old words are found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vocabulary import ROOT, WORDS, Word, files, hits, scan


def test_no_old_word_is_left() -> None:
    assert [str(hit) for hit in scan(list(files()))] == []


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.better)
def test_each_pattern_finds_its_example(word: Word) -> None:
    assert [hit.better for hit in hits("docs/a.md", word.example, [word])]
    assert not list(hits("docs/a.md", word.better, WORDS))


def test_what_is_allowed_is_there() -> None:
    for word in WORDS:
        for place in word.allowed:
            strict = replace(word, allowed={})
            assert [
                hit for path in files() if path.startswith(place) for hit in hits(path, (ROOT / path).read_text(), [strict])
            ], place


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("a/b.py", '"""One.\n\nStarted anew."""\n', ["a/b.py:3: 'anew': better again, re-"]),
        (
            "a/b.py",
            'x = 1\nsay(f"{app}, {1} is no {what}: its maintainers\'.")',
            ['a/b.py:2: "its maintainers\'": better managed by its maintainers'],
        ),
        ("a/b.py", 'STATE = "contested"  # anew\n', []),
        (
            "a/b.html",
            "{# anew #}\n<p title='x' class=\"anew\">{% if anew %}\nStart <code>anew</code>\nanew</p>",
            ["a/b.html:4: 'anew': better again, re-"],
        ),
        ("a/b.html", '<p title="start anew">', ["a/b.html:1: 'anew': better again, re-"]),
        ("docs/a.md", "```\nanew\n```\n[`anew`](anew.md)\nAnew", ["docs/a.md:5: 'Anew': better again, re-"]),
        ("docs/a.md", "There is no app as well; it is no longer there, and is well known.", []),
    ],
)
def test_only_texts_for_people_are_read(path: str, source: str, found: list[str]) -> None:
    assert [str(hit) for hit in hits(path, source)] == found


def test_the_texts_of_all_packages_are_read() -> None:
    names = set(files())
    assert {"runs/intake.py", "infra/templates/infra/ask.html", "docs/infra.md", "README.md"} <= names
    assert not [name for name in names if "migrations" in name]
