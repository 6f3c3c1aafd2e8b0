"""The documentation inside the product: docs/ as pages, searchable. The text is ours, and trusted."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from django.urls import reverse
from markdown_it import MarkdownIt
from markdown_it.token import Token

from controlplane.config import BASE_DIR

#: Who reads what, in the order of the index. A page that is missing here is listed at the end.
GROUPS = {
    "For maintainers of recipes": (
        "enroll-recipe",
        "write-tests",
        "stages",
        "verdicts",
        "lint",
        "deferred",
        "examples/DEFERRED",
        "trust",
    ),
    "For operators": (
        "install",
        "operate",
        "configuration",
        "webhooks",
        "executors/drone",
        "executors/woodpecker",
        "images",
        "oidc",
        "infra",
        "upgrades",
        "security",
        "sandbox",
        "api",
    ),
    "For developers": ("architecture", "decisions", "deployers", "run-folder", "glossary"),
}
#: What a page may show besides text.
FILES = {".png": "image/png", ".svg": "image/svg+xml", ".json": "application/json"}
#: Hits that a search lists, and characters of each that are shown.
MOST, SHOWN = 50, 240


@dataclass(frozen=True)
class Section:
    """A heading with the text below it. `anchor`: empty for the page's own."""

    heading: str
    anchor: str
    text: str


@dataclass(frozen=True)
class Page:
    """`slug`: its path below docs/ without `.md`. `html`: with links to our pages. `files`: what it shows, by path."""

    slug: str
    title: str
    html: str
    sections: tuple[Section, ...]
    files: frozenset[str]

    @property
    def url(self) -> str:
        return reverse("docs", args=[f"{self.slug}/"])


@dataclass(frozen=True)
class Hit:
    page: Page
    section: Section
    snippet: str

    @property
    def url(self) -> str:
        return f"{self.page.url}#{self.section.anchor}" if self.section.anchor else self.page.url


def folder() -> Path:
    installed = Path(__file__).parent / "docs"  # see packaging.py
    return installed if installed.is_dir() else BASE_DIR / "docs"


@cache
def pages() -> dict[str, Page]:
    """All pages by their slugs, read once."""
    root = folder()
    found = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.md"))}
    return {slug: _page(slug, path.read_text()) for slug, path in found.items()}


def groups() -> list[tuple[str, list[Page]]]:
    """The index: who reads them, and the pages."""
    everything = pages()
    listed = {slug for slugs in GROUPS.values() for slug in slugs}
    found = [(who, [everything[slug] for slug in slugs if slug in everything]) for who, slugs in GROUPS.items()]
    rest = [page for slug, page in everything.items() if slug not in listed]
    return [*found, ("More", rest)] if rest else found


def shown_file(name: str) -> tuple[bytes, str] | None:
    """The content and type of a file that a page shows; None for any other."""
    if not any(name in page.files for page in pages().values()):
        return None
    return (folder() / name).read_bytes(), FILES[PurePosixPath(name).suffix]


def search(text: str) -> list[Hit]:
    """The sections that have all words of the text, those with one in the heading first."""
    words = text.lower().split()[:20]
    if not words:
        return []
    hits = []
    for page in pages().values():
        for section in page.sections:
            heading = f"{page.title} {section.heading}".lower()
            if all(word in heading or word in section.text.lower() for word in words):
                hits.append((-sum(word in heading for word in words), Hit(page, section, _snippet(section.text, words[0]))))
    hits.sort(key=lambda hit: hit[0])
    return [hit for _, hit in hits[:MOST]]


def _snippet(text: str, word: str) -> str:
    at = max(text.lower().find(word) - SHOWN // 3, 0)
    return ("… " if at else "") + text[at : at + SHOWN].strip() + (" …" if at + SHOWN < len(text) else "")


def _page(slug: str, text: str) -> Page:
    reader = MarkdownIt("commonmark").enable("table")
    tokens = reader.parse(text)
    files: set[str] = set()
    sections: list[Section] = []
    anchors: set[str] = set()
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = _plain(tokens[number + 1])
            anchor = _anchor(heading, anchors) if token.tag != "h1" else ""
            if anchor:
                token.attrSet("id", anchor)
            sections.append(Section(heading, anchor, ""))
        elif token.type in ("inline", "fence", "code_block"):
            for child in token.children or ():
                _link(child, slug, files)
            if sections and not (number and tokens[number - 1].type == "heading_open"):
                last = sections[-1]
                sections[-1] = Section(last.heading, last.anchor, f"{last.text} {_plain(token)}".strip())
    title = sections[0].heading if sections else slug
    return Page(slug, title, str(reader.renderer.render(tokens, reader.options, {})), tuple(sections), frozenset(files))


def _plain(token: Token) -> str:
    parts = (child.content or (" " if child.type.endswith("break") else "") for child in token.children or [token])
    return " ".join("".join(parts).split())


def _anchor(heading: str, taken: set[str]) -> str:
    """As the forges make them, so that links in the files work at both places."""
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    same = [anchor, *(f"{anchor}-{number}" for number in range(1, 100))]
    anchor = next(name for name in same if name not in taken)
    taken.add(anchor)
    return anchor


def _link(token: Token, slug: str, files: set[str]) -> None:
    """Let a link between files lead to our page. One to the source code, which is not here, leads nowhere."""
    name = {"link_open": "href", "image": "src"}.get(token.type, "")
    where: Any = token.attrGet(name) if name else None
    if not where or urlsplit(where).scheme or where.startswith("#"):
        return
    path, _, anchor = where.partition("#")
    target = _within(PurePosixPath(slug).parent / path)
    if target.suffix == ".md" and (folder() / target).is_file():
        token.attrSet(name, reverse("docs", args=[f"{target.with_suffix('').as_posix()}/"]) + (f"#{anchor}" if anchor else ""))
    elif target.suffix in FILES and (folder() / target).is_file():
        files.add(target.as_posix())
        token.attrSet(name, reverse("docs", args=[target.as_posix()]))
    else:
        del token.attrs[name]


def _within(path: PurePosixPath) -> PurePosixPath:
    path = PurePosixPath(posixpath.normpath(path))
    return PurePosixPath("outside") if path.is_absolute() or ".." in path.parts else path
