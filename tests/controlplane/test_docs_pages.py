"""The documentation inside the product: every page, every link, the search, and the static site."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from controlplane import docs
from controlplane.config import BASE_DIR


def test_every_page_is_there_and_its_links_lead_somewhere(client: Client) -> None:
    texts = {page.url: client.get(page.url).content.decode() for page in docs.pages().values()}
    assert len(texts) == len(list((BASE_DIR / "docs").rglob("*.md")))
    for url, text in texts.items():
        article = text.partition("<article")[2].partition("</article>")[0]
        for link in re.findall(r'(?:href|src)="([^"]+)"', article):
            path, _, anchor = unescape(link).partition("#")
            if path.startswith("http"):
                continue
            there = texts[url] if not path else texts.get(path) or client.get(path)
            if isinstance(there, str):
                assert not anchor or f'id="{unquote(anchor)}"' in there, f"{url}: {link}"
            else:
                assert there.status_code == 200 and there["X-Content-Type-Options"] == "nosniff", f"{url}: {link}"


def test_every_page_has_its_readers() -> None:
    assert {who for who, _ in docs.groups()} == set(docs.GROUPS), "a new page gets a place in GROUPS"
    assert all(pages for _, pages in docs.groups())


@pytest.mark.parametrize("name", ["nothing", "../README", "..%2fREADME.md", "screenshots/start-phone-dark.png", "stages.md"])
def test_nothing_else_is_served(client: Client, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == 404


def test_a_search_finds_sections_by_all_words(client: Client) -> None:
    hits = docs.search("Quick RUNS")
    assert hits and hits[0].section.heading == "Quick runs" and hits[0].url == "/docs/stages/#quick-runs"
    assert docs.search("   ") == docs.search("xyzzy quick") == []
    page = client.get("/docs/", {"search": "quick runs"}).content.decode()
    assert 'href="/docs/stages/#quick-runs"' in page
    page = client.get("/docs/", {"search": "<script>xyzzy"}).content.decode()
    assert "Nothing is found" in page and "<script>xyzzy" not in page
    assert client.get("/docs/", {"search": "a " * 5000}).status_code == 200
    assert "For operators" in client.get("/docs/").content.decode()


def test_headings_of_one_name_are_told_apart() -> None:
    page = docs._page("x", "# T\n\n## A b!\n\ntext\n\n## A b\n\n[there](stages.md#x) [out](../tests/x.py) [off](https://e.org)")
    assert [section.anchor for section in page.sections] == ["", "a-b", "a-b-1"]
    assert 'href="/docs/stages/#x"' in page.html and "tests/x.py" not in page.html and 'href="https://e.org"' in page.html


def test_the_static_site_is_whole(tmp_path: Path) -> None:
    site = tmp_path / "site"
    call_command("docs", str(site))
    pages = list(site.rglob("*.html"))
    assert len(pages) == len(docs.pages()) + 1
    for page in pages:
        for link in re.findall(r'(?:href|src)="(/[^"#]*)', page.read_text()):
            target = site / link.lstrip("/")
            assert target.is_file() or (target / "index.html").is_file(), f"{page}: {link}"
    with pytest.raises(CommandError, match="is not empty"):
        call_command("docs", str(site))
