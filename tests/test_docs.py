"""What the docs name is there: paths, modules, functions, links; and the glossary is in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = [
    path
    for path in (
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs/executors").glob("*.md")),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    )
    if path.exists()
]
FOLDERS = "controlplane|enrollment|runs|infra|docs"
#: Elsewhere `tests/` is a recipe's.
MAINTAINERS = ("README.md", "CONTRIBUTING.md", "architecture.md", "decisions.md", "glossary.md")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def lacks(path: Path, name: str) -> bool:
    """Whether a module or a package's modules define no such function, class, method or constant."""
    last = re.escape(name.rpartition(".")[2])
    defined = re.compile(rf"^\s*((async )?def|class) {last}\b|^\s*{last}\b.*=", re.MULTILINE)
    return not any(defined.search(file.read_text()) for file in (path.glob("*.py") if path.is_dir() else [path]))


def missing(text: str, folders: str = FOLDERS) -> Iterator[str]:
    """The code spans that name one of our paths (`runs/intake.py:handle`) or modules (`runs.intake.handle`), and are wrong."""
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        if found := re.fullmatch(rf"((?:{folders})/[\w./-]*)(?::([\w.]+))?", span):
            path = ROOT / found[1]
            if not path.exists() or (found[2] and lacks(path, found[2])):
                yield span
        elif re.fullmatch(rf"(?:{folders})(?:\.\w+)+", span) and not span.endswith((".md", ".yml", ".py")):
            parts, path = span.split("."), ROOT
            while parts and (path / parts[0]).is_dir():
                path /= parts.pop(0)
            if parts and (path / f"{parts[0]}.py").is_file():
                path /= f"{parts.pop(0)}.py"
            if parts and lacks(path, parts[0]):
                yield span


def tree(text: str) -> Iterator[str]:
    """The paths of the tree of folders in architecture.md: names before the first two spaces, under the folder further out."""
    above: list[tuple[int, str]] = []
    for line in FENCE.findall(text)[0].splitlines()[1:-1]:
        depth = len(line) - len(line.lstrip())
        above = [(at, folder) for at, folder in above if at < depth]
        for name in re.split(r" {2,}", line.strip())[0].split():
            yield "".join(folder for _, folder in above) + name
        if name.endswith("/"):
            above.append((depth, name))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_a_page_names_exists(path: Path) -> None:
    assert list(missing(path.read_text(), f"{FOLDERS}|tests" if path.name in MAINTAINERS else FOLDERS)) == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", path.read_text())
    assert [link for pair in links if "://" not in (link := pair[0] or pair[1]) and not (path.parent / link).exists()] == []


def test_the_tree_of_folders_is_the_one_that_is_there() -> None:
    paths = list(tree((ROOT / "docs/architecture.md").read_text()))
    assert len(paths) > 60
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_picture_names_what_is_there() -> None:
    names = set(re.findall(r'class="name[^>]*>(\w+)<', (ROOT / "docs/architecture.svg").read_text())) - {"Database"}
    places = ("enrollment", "runs", "infra", "infra/deployers")
    assert [name for name in names if not any(list((ROOT / place).glob(f"{name}*")) for place in places)] == []


def test_the_numbers_in_the_picture_are_those_of_the_lists() -> None:
    picture, text = (ROOT / "docs/architecture.svg").read_text(), (ROOT / "docs/architecture.md").read_text()
    ways = re.findall(r"^## A \w+'s path$(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert len(ways) == 3
    for number, way in enumerate(ways, start=1):
        drawn = re.findall(rf'class="w{number} badge".*?class="number"[^>]*>(\d+)<', picture)
        assert sorted(drawn, key=int) == re.findall(r"^(\d+)\. ", way, re.MULTILINE)


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.lower)


def test_names_that_are_wrong_are_found() -> None:
    text = "`runs/nowhere.py` `runs/intake.py:handel` `runs.lifecycle.MOVED` `runs.intake.handle` `runs/intake.py:handle`"
    assert list(missing(text)) == ["runs/nowhere.py", "runs/intake.py:handel", "runs.lifecycle.MOVED"]
