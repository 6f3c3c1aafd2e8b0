"""`python -m tests.vocabulary [PATH …]`: where messages, pages, docstrings and docs still use words of the old vocabulary.

docs/glossary.md has the words that we use. This reads the string literals of the packages, the text of templates, and the docs.
It leaves out what is set as code there, and literals of one word, which are names.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("controlplane", "enrollment", "infra", "runs")


@dataclass(frozen=True)
class Word:
    pattern: str
    better: str
    example: str  #: a text in which the pattern finds something
    allowed: Mapping[str, str] = field(default_factory=dict)  #: a path's beginning -> why the word is right there


#: The sub-command, which people type.
LIFT = dict.fromkeys(("infra/releases/gate.py", "infra/web/actions.py"), "the name of a command")

WORDS = (
    Word(r"\bcontested\b", "drift, changed without cc-ci", "keycloak is contested."),
    Word(r"\bforeign (change|service|spec|hand|part)s?\b", "unexpected change", "A foreign change was found."),
    Word(r"\b(the|a|this|that|next|last|each|one|of) nights?\b|\btonight\b", "maintenance run", "The night ended."),
    Word(r"\bcarr(y|ies|ied|ying) (\w+ )?out\b", "execute, run", "It carries the upgrade out: carry out 4."),
    Word(r"\bfors(ake|akes|aken|ook)\b", "orphaned, abandoned", "2 forsaken upgrades"),
    Word(r"\blift(s|ed|ing)?\b", "remedy, waive, release from quarantine", "what lifts it", LIFT),
    Word(r"\bways? back\b", "rollback", "The way back failed."),
    Word(
        r"\b(is|are|be|been|was|were|becomes?|became|stays?|not|all) well\b(?! (before|known|within|above|below)\b)"
        r"|\b(unwell|sick|ill)\b",
        "healthy, unhealthy",
        "It is not well as it is.",
        {"docs/webhooks.md": "`unwell` is an outcome's name in a table that the code holds"},
    ),
    Word(
        r"\banew\b", "again, re-", "Docker was started anew.", {"infra/release_notes.py": "what release notes of others may say"}
    ),
    Word(
        r"\b(its|their) maintainers'(?! \w)", "managed by its maintainers", "It is its maintainers', and cc-ci changes nothing."
    ),
    Word(r"\b(app|apps|what|that) (that )?lives? on\b|\blong-lived apps?\b", "persistent app", "apps that live on"),
    Word(r"\b(the|a|hourly|under) net\b|\bnets\b", "full resync", "The next listing is a net."),
    Word(r"\bclimb(s|ed|ing)?\b", "reach, level", "It ends the climb."),
    Word(r"\b(is|are|was|were) passed over\b", "does not apply, skipped", "Rungs without tests were passed over."),
    Word(
        r"(?<!there )(?<!here )\b(is|are|was|were) no (?!longer\b|more\b|less\b|later\b|other than\b)\w+",
        "is not a, invalid",
        "this is no YAML",
        {"enrollment/forge_access/permissions.py": "stored with what was seen, and compared with it"},
    ),
    Word(r"\bst(and|ands|ood|anding) there\b", "is there, exists, is written", "what stands there"),
    Word(r"\bin (this|that|the|the same) (very )?moment\b", "concurrently, just now", "The app was changed in this moment."),
    Word(
        r"\b(did|does|will|would) not do\b(?! (anything|so|it|that|this|any|more|what)\b)", "failed", "11.0 did not do: no health"
    ),
    Word(r"\bby now\b", "already, since then", "closed by now"),
    Word(r"\btold (so|as|once|in words)\b", "reported", "You were told so."),
    Word(
        r"\b(next|one|each|every|first|last|present|whole|of|two|three) looks?\b(?! like)"
        r"|\blook(s|ed|ing)? at (a|the|each|every|one|all|its) (forge|owner|pull request|repository)\b",
        "poll, check",
        "at the next look at the forge",
    ),
    Word(r"\b(wakes?|woke|woken) the poller\b", "triggers a poll", "It only wakes the poller."),
    Word(r"\b(there|here|counts?|lives?|needed|known|wanted|valid) no more\b", "no longer", "The tag is there no more."),
    Word(r"\bmend(s|ed|ing)?\b", "fix, repair", "Mend it first."),
    Word(r"\bin words\b", "as a message, as text", "It ends, in words."),
    Word(r"\bsandbox forge\b", "fake forge", "the sandbox forge"),
    Word(r"\bwish(es)?\b", "desired state, request", "the wish for an answer"),
    Word(r"(?-i:\bBegun:|\bIts end\b)", "Started", "Begun: X (number 4)."),
)


@dataclass(frozen=True)
class Hit:
    path: str
    line: int
    found: str
    better: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r}: better {self.better}"


class _Literals(ast.NodeVisitor):
    """The texts in a Python file, an f-string as one."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append((node.lineno, node.value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        self.found.append((node.lineno, "".join(parts)))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)


def _blank(pattern: str, text: str, flags: int = re.DOTALL) -> str:
    """The text with what the pattern finds taken out, line by line as before."""
    return re.sub(pattern, lambda found: "…" + "\n" * found[0].count("\n"), text, flags=flags)


def texts(path: str, source: str) -> Iterator[tuple[int, str]]:
    """The texts for people in a file, each with the line in which it begins."""
    if path.endswith(".py"):
        literals = _Literals()
        literals.visit(ast.parse(source))
        yield from ((line, text) for line, text in literals.found if " " in text.strip())
    elif path.endswith(".md"):
        yield 1, _blank(r"^```.*?^```$", _blank(r"<!--.*?-->|`[^`\n]+`|\]\([^)]*\)|<[^>\n]*>", source), re.DOTALL | re.MULTILINE)
    else:
        shown = _blank(
            r"\{#.*?#\}|\{% comment %\}.*?\{% endcomment %\}|\{%.*?%\}|\{\{.*?\}\}|<code>.*?</code>|<script.*?</script>", source
        )
        yield 1, re.sub(r"<(?:[^>\"]|\"[^\"]*\")*>", _attributes, shown)


def _attributes(tag: re.Match[str]) -> str:
    """What a tag says to people."""
    said = " ".join(re.findall(r"(?:title|alt|aria-label|placeholder)=\"([^\"]*)\"", tag[0]))
    return f" {said} " + "\n" * (tag[0].count("\n") - said.count("\n"))


def hits(path: str, source: str, words: Sequence[Word] = WORDS) -> Iterator[Hit]:
    for line, text in texts(path, source):
        for word in words:
            if not any(path.startswith(place) for place in word.allowed):
                for found in re.finditer(word.pattern, text, re.IGNORECASE):
                    yield Hit(path, line + text.count("\n", 0, found.start()), found[0], word.better)


def files() -> Iterator[str]:
    """Every file with texts for people."""
    patterns = [f"{package}/**/*.py" for package in PACKAGES] + [f"{package}/**/templates/**/*.html" for package in PACKAGES]
    for pattern in (*patterns, "docs/*.md", "docs/executors/*.md", "*.md"):
        for path in sorted(ROOT.glob(pattern)):
            if "migrations" not in path.parts and not path.name.endswith(".min.js"):
                yield str(path.relative_to(ROOT))


def scan(paths: Iterable[str]) -> list[Hit]:
    return [hit for path in paths for hit in hits(path, (ROOT / path).read_text())]


def main(arguments: Sequence[str]) -> int:
    found = scan([path for path in files() if not arguments or path.startswith(tuple(arguments))])
    print("\n".join(map(str, found)))
    print(f"{len(found)} in {len({hit.path for hit in found})} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
