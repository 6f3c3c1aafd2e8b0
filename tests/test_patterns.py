"""None of our regular expressions or readers of strangers' text takes more than linear time: measured against a plain one.

Every pattern of the packages is tried, wherever it is applied: who writes a new one need not think of this test, nor of whose
text it will meet. The nasty inputs are made of the pattern's own pieces, repeated.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow(0.5)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runs", "infra", "enrollment", "controlplane")
#: The fake forge has no strangers, and what runs in the sandbox takes only the sandbox's time.
ELSEWHERE = ("migrations", "enrollment/fakeforge", "/guest/")
METHODS = ("match", "fullmatch", "search", "findall", "finditer", "split", "sub")
#: Patterns that are made while the program runs, as they are written: one that such code may make.
MADE = {
    r"(?<![\w-]){re.escape(name)}(?![\w-])": r"(?<![\w-])web\-app(?![\w-])",
    r"{re.escape(name)}:(\d+)": r"compose\.yml:(\d+)",
    r"{re.escape(stack)}_[A-Za-z0-9_.-]+": r"ccci_0_[A-Za-z0-9_.-]+",
    r"{re.escape(stack)}(?:[-_][A-Za-z0-9_-]*)?": r"ccci_0(?:[-_][A-Za-z0-9_-]*)?",
    r"(?:[a-z0-9_-]+\.)*{re.escape(domain.lower())}": r"(?:[a-z0-9_-]+\.)*web\.example\.org",
    r"\^(?:[!-~]*\\\.)?{end}\$": r"\^(?:[!-~]*\\\.)?web\\\.example\\\.org\$",
    "version_2": r"\^\{[a-z]+:\[a-z0-9-\]\+\}\.web\.example\.org\$",
    r"{re.escape(str(checkout))}(?![\w.-])": r"/var/lib/cc\-ci/checkout(?![\w.-])",
    "pattern": r"^/(user|users|orgs|teams)(/|$)|/collaborators/",
    "translate(pattern)": translate("*a*b?[c]*d*"),
    r"[0-9a-f]{{{MIN_SHA},64}}": r"[0-9a-f]{7,64}",
    r"!testme --stages (({'|'.join(STAGES)}),?)+": r"!testme --stages ((install|upgrade|backup|restore|custom|extra),?)+",
}
#: Patterns that are not ours: where, and why they may be any.
OTHERS = {
    "infra/release_notes.py: pattern": "of the operator, in infra.yml, for pieces of 2,000 characters",
    "infra/config/schema.py: pattern": "the same, which is not applied there",
}
#: How many times as long as looking at each character may take: a quadratic pattern takes hundreds of times at MIDDLE.
BOUND = 60
SMALL, MIDDLE, BIG = 1_000, 16_000, 1 << 17


@dataclass(frozen=True)
class Applied:
    """A pattern, where it stands, and how it is applied there."""

    where: str
    pattern: re.Pattern[Any]
    how: str

    def over(self, text: str) -> Callable[[], object]:
        data: Any = text.encode("latin-1", "replace") if isinstance(self.pattern.pattern, bytes) else text
        if self.how == "sub":
            return lambda: self.pattern.sub(lambda match: match[0], data)
        if self.how == "finditer":
            return lambda: sum(1 for _ in self.pattern.finditer(data))
        return lambda: getattr(self.pattern, self.how)(data)


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not any(part in f"/{name}" for part in ELSEWHERE) and re.search(r"\bre\.", path.read_text()):
                yield name, path


def _compiled(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _compiled(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _compiled(item)


#: Patterns that are made, and stand not in MADE.
UNKNOWN: list[str] = []


@cache
def applied() -> list[Applied]:
    found: dict[tuple[str, str], Applied] = {}
    for name, path in _modules():
        text = path.read_text()
        module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for key, value in vars(module).items():
            if key.startswith("__") or not (patterns := list(_compiled(value))):
                continue
            used = {how for how in METHODS if re.search(rf"\b{re.escape(key)}\b(?:\[\w+\])?\.{how}\(", text)}
            for pattern in patterns:
                for how in used or {"search", "fullmatch"}:
                    found[str(pattern.pattern), how] = Applied(f"{name}: {key}", pattern, how)
        tree = ast.parse(text)
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        later = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if (
                not isinstance(node.func.value, ast.Name)
                or node.func.value.id != "re"
                or node.func.attr not in (*METHODS, "compile")
            ):
                continue
            written, how = node.args[0], node.func.attr
            if how == "compile":
                if id(node) not in later or f"{name}: {ast.unparse(written)}" in OTHERS:
                    continue  # what the module compiles is among its variables
                how = "match"
            flags = 0
            for option in (*node.args[1:], *(keyword.value for keyword in node.keywords)):
                if isinstance(option, ast.Attribute) and isinstance(option.value, ast.Name) and option.value.id == "re":
                    flags |= getattr(re, option.attr)
            if isinstance(written, ast.Constant):
                source = written.value
            else:
                segment = re.sub(r"""^[rf]*["']|["']$""", "", ast.get_source_segment(text, written) or "")
                source = MADE.get(segment, "")
                if not source:
                    UNKNOWN.append(f"{name}:{node.lineno}: {segment}")
            found[str(source), how] = Applied(f"{name}:{node.lineno}", re.compile(source, flags), how)
    return list(found.values())


def _pieces(pattern: re.Pattern[Any]) -> list[str]:
    """What a pattern's own texts are made of: examples of its parts, and the characters that it names."""
    parser, names = importlib.import_module("re._parser"), importlib.import_module("re._constants")
    pieces: list[str] = []

    def one_of(items: Any) -> list[str]:
        kinds = {
            names.CATEGORY_DIGIT: "1",
            names.CATEGORY_SPACE: " \n",
            names.CATEGORY_WORD: "a_",
            names.CATEGORY_NOT_SPACE: "a-",
        }
        found: list[str] = []
        for kind, value in items:
            found += [chr(value)] if kind is names.LITERAL else [chr(value[0])] if kind is names.RANGE else []
            found += kinds.get(value, "") if kind is names.CATEGORY else ""
        return found

    def example(tree: Any) -> str:
        text = ""
        for kind, value in tree:
            piece = ""
            if kind is names.LITERAL:
                piece = chr(value)
            elif kind is names.NOT_LITERAL:
                piece = "a" if value != ord("a") else "b"
            elif kind is names.ANY:
                piece = "x"
            elif kind is names.IN:
                members = one_of(value)
                pieces.extend(members[:4])
                piece = (members or ["a"])[0]
                if value[0][0] is names.NEGATE:
                    piece = next(character for character in "aX1 -~" if character not in members)
            elif kind in (names.MAX_REPEAT, names.MIN_REPEAT, names.POSSESSIVE_REPEAT):
                inner = example(value[2])
                pieces.append(inner)
                piece = inner * min(max(value[0], 1), 70)
            elif kind is names.SUBPATTERN:
                piece = example(value[3])
            elif kind is names.ATOMIC_GROUP:
                piece = example(value)
            elif kind is names.BRANCH:
                branches = [example(branch) for branch in value[1]]
                pieces.extend(branches)
                piece = branches[0]
            elif kind in (names.ASSERT, names.ASSERT_NOT):
                example(value[1])
            pieces.append(piece)
            text += piece
        return text

    whole = example(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    found = list(dict.fromkeys(piece for piece in [whole, *reversed(pieces)] if piece))
    # The most telling first: what goes together with others, then all starts of a text that fits.
    return [*found[:10], *(whole[:length] for length in range(1, min(len(whole), 60))), *found[10:20]]


#: What is nasty to some reader or other.
COMMON = (
    "a",
    "A",
    "0",
    " ",
    "\n",
    "\t",
    "-",
    "*",
    "#",
    "`",
    '"',
    "'",
    "\\",
    "$",
    "${",
    "${A:-",
    "}",
    "[",
    "(",
    ".",
    "/",
    ":",
    "@",
    "=",
)
COMMON += ("- ", "**", "a.", "a ", '"\\', "<!--", "\x1b[", "::", "é", "\x00")


def _nasty(pattern: re.Pattern[Any]) -> Iterator[Callable[[int], str]]:
    """Makers of texts of a length: something, then something repeated, then an end that does not fit."""
    pieces = _pieces(pattern)
    shapes = [("", piece) for piece in (*pieces, *COMMON)]
    pieces = pieces[:8]
    shapes += [(start, piece) for start, piece in itertools.permutations(pieces, 2)]
    shapes += [("", one + other) for one, other in itertools.permutations(pieces, 2)]
    for start, piece in dict.fromkeys(shapes):
        for end in ("", "\x00"):
            yield lambda size, start=start, piece=piece, end=end: f"{start}{piece * (size // len(piece))}{end}"  # type: ignore[misc]


PLAIN = re.compile(r"[\s\S]")


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _ratio(one: Applied, text: str) -> float:
    """How much longer than the plain pattern it takes; the least of three where that is too much."""
    ratios = []
    piece = text[:MIDDLE]  # what is plain takes as long for each
    for _ in range(3):
        plain = _seconds(lambda: sum(1 for _ in PLAIN.finditer(piece))) * len(text) / len(piece)
        ratios.append(_seconds(one.over(text)) / max(plain, 0.0005))
        if not BOUND < ratios[-1] < 4 * BOUND:
            break
    return min(ratios)


def _worst(one: Applied, most: int = 4) -> list[Callable[[int], str]]:
    """Of the nasty texts, those that take longest while they are small. What else the machine does makes some longer, so the
    first of them are looked at again."""
    works = [(make, one.over(make(SMALL))) for make in _nasty(one.pattern)]
    first = sorted(works, key=lambda each: -_seconds(each[1]))[: 2 * most]
    again = sorted(first, key=lambda each: -min(_seconds(each[1]) for _ in range(2)))
    return [make for make, _ in again[:most]]


@pytest.mark.parametrize("module", [name for name, _ in _modules()])
def test_every_pattern_is_linear(module: str) -> None:
    for one in applied():
        if one.where.partition(":")[0] != module:
            continue
        worst = _worst(one)
        for make, size in (*((make, MIDDLE) for make in worst), (worst[0], BIG)):
            text = make(size)
            ratio = _ratio(one, text)
            said = f"{one.where} {one.how} {one.pattern.pattern!r:.200}: {ratio:.0f} times as long for {size} of {text[:80]!r}"
            assert ratio <= BOUND, said


def test_a_quadratic_pattern_is_found() -> None:
    """The four that there were, and a few more."""
    patterns = (
        (r"^\s*[*-]\s+\*\*([^*\n]{1,40})\*\*:[ \t]*\S", "finditer", re.MULTILINE),
        (r"[\w./-]+\.py\b", "search", 0),
        (r"([A-Za-z]+)[ \t\n]*\(", "findall", 0),
        (r'`[^`]*`|"(?:[^"\\]|\\.)*"', "sub", 0),
        (r"[^/]+@?[^/]*:", "match", 0),
        (r'exec: (\\?".*?\\?"|\S+): (executable file not found|stat [^:]+: no such file|permission denied)', "search", 0),
    )
    for pattern, how, flags in patterns:
        one = Applied("here", re.compile(pattern, flags), how)
        worst = _worst(one)
        # Most are found by less, which takes a quarter of the time.
        assert any(_ratio(one, make(size)) > BOUND for size in (MIDDLE // 2, MIDDLE) for make in worst), pattern


def test_all_patterns_are_seen() -> None:
    found = {one.where for one in applied()}
    assert not UNKNOWN, "Write down in MADE what they may become."
    assert len(found) > 80
    assert {
        "runs/harness/readme.py: _VALUE",
        "runs/deferred/file_format.py: _PATH",
        "infra/deployers/messages.py: _NO_PROGRAM",
    } <= found


# --- whole readers


def _deferred(text: str) -> None:
    from runs.deferred.file_format import parse

    parse(f"## Open deferrals\n\n### 2026-01-01 — x\n\n- [ ] **What:** x\n{text}")


def _comment(text: str) -> None:
    from runs.commands import parse

    parse(f"{text}\n\n!testme\n\n{text}")


def _sample(text: str) -> None:
    from infra.deployers.compose import environment

    for sample, exports in ((text, ""), (f'A="{text}', ""), (f"A={text}", ""), ("", text), ("", f"export A={text}")):
        try:
            environment.build(sample=sample, exports=exports, recipe="web", fixed={"DOMAIN": "web.example.org"})
        except environment.EnvironmentProblem:
            pass


def _toml(text: str) -> None:
    from runs.harness import recipe_config

    for document in (text, f"a = {text}", f'a = """{text}', f"[{text}"):
        try:
            recipe_config.parse(document.encode()[: 64 << 10])
        except recipe_config.RecipeConfigError:
            pass


def _junit(text: str) -> None:
    from runs.harness import junit

    for document in (text, f"<testsuite>{text}", f"<testsuite><testcase name='{text}'/></testsuite>"):
        try:
            junit.parse(document.encode())
        except junit.BadJUnit:
            pass


def _labels(text: str) -> None:
    from infra.deployers.compose import routes

    labels = {
        "traefik.http.routers.x.rule": text,
        f"traefik.http.routers.{text}.rule": "Host(`x`)",
        "traefik.tcp.routers.x.rule": text,
    }
    list(routes.problems(labels, "web.example.org", "ccci_0"))
    list(routes.unruled(labels))
    list(routes.misplaced(labels))
    list(routes.unserved(labels))
    routes.serving(labels, "web.example.org")


def _marked(text: str) -> None:
    from controlplane import untrusted

    untrusted.markdown(text)
    untrusted.code_block(text)


def _words(text: str) -> None:
    from infra.deployers import messages

    messages.failure("app", f"exec: {text}", {})
    messages.failure("app", text, {})


def _version(text: str) -> None:
    from infra.recipe_version import Unreadable, Version

    for label in (text, f"1.0.0+{text}", f"v{text}"):
        try:
            Version.parse(label)
        except Unreadable:
            pass


READERS = (_deferred, _comment, _sample, _toml, _junit, _labels, _marked, _words, _version)
NASTY = (
    *COMMON,
    "> ",
    "1. ",
    "![",
    "[a](",
    "*a_",
    "<a ",
    "&",
    "<a>",
    "</a>",
    "<!",
    "| ",
    "a=",
    "export A=",
    "A=1 ",
    "\r",
    "\n\n- [ ] **x:** ",
)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__.strip("_"))
def test_every_reader_is_linear(read: Callable[[str], None]) -> None:
    """Eight times as much takes about eight times as long: sixty-four times would be the square."""
    few, many = 4_000, 32_000
    read("a" * many)  # whatever is loaded at first
    for piece in NASTY:
        factors = []
        for _ in range(3):
            short = _seconds(lambda piece=piece: read(piece * (few // len(piece))))  # type: ignore[misc]
            long = _seconds(lambda piece=piece: read(piece * (many // len(piece))))  # type: ignore[misc]
            factors.append(long / max(short, 0.002))
            if factors[-1] < 25:
                break
        assert min(factors) < 25, f"{read.__name__} takes {min(factors):.0f} times as long for 8 times as much of {piece!r}"
