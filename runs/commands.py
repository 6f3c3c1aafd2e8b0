"""Parses comment text into a Command, a Problem or None. Pure; never raises, whatever the text.

A command is written at the start of a line of the comment as the forge shows it (`runs.comment_text`). The parser, the help
text and the docs all use the tables VERBS and OPTIONS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from enrollment.access.authorization import is_sha
from infra.recipe_version import is_version
from runs.comment_text import plain_lines
from runs.harness.stage_table import DEFAULT_STAGES, STAGES, in_order

TRIGGER = "!testme"
#: Maximum characters of a comment to search for near misses: anybody may write one.
_NEAR = 64 << 10
#: How people end a line.
_ENDS = ".,;:!…"
#: A mention before a command.
_MENTION = re.compile(r"@[\w.-]+[,:]?\s+(?=!testme(?![\w-]))", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A row of the table: how a command is written, and what it does."""

    form: str
    text: str


RETRY_ALL = "retry all"
VERBS = {
    "help": Entry("!testme help", "List the commands."),
    "status": Entry("!testme status", "Show the state of this pull request's newest run."),
    "cancel": Entry("!testme cancel", "Stop this pull request's run and tear it down."),
    "retry": Entry("!testme retry", "Run what failed in the newest run again, on the same commit."),
    RETRY_ALL: Entry("!testme retry all", "Run all stages again on that commit."),
    "approve": Entry("!testme approve", "Approve the waiting run of an outsider's commit; append the full commit id."),
}
#: What a quick run runs, beside extra tests: its app comes from known-good data.
QUICK_STAGES = ("upgrade", "custom")
OPTIONS = {
    "--extra-tests": Entry("!testme --extra-tests", "Also run the recipe's extra (heavy) tests."),
    "--quick": Entry("!testme --quick", "Upgrade and test the data of the default branch's last good run. Counts for no merge."),
    "--from": Entry("!testme --from 1.0.0+1", "Upgrade from this published version instead of the newest one."),
    "--stages": Entry("!testme --stages install,custom", f"Run only these stages (available: {', '.join(STAGES)})."),
}
RUN = Entry("!testme", f"Deploy the newest commit and run its tests ({', '.join(DEFAULT_STAGES)}).")
COMMIT = Entry(
    "!testme 1234567", "The same for this commit of the pull request (at least 7 digits; the full id for an outsider's)."
)


@dataclass(frozen=True)
class Command:
    verb: str  #: run, or one of VERBS
    sha: str = ""
    stages: tuple[str, ...] = DEFAULT_STAGES
    line: str = ""
    upgrade_from: str = ""  #: the published version; empty: the newest
    quick: bool = False

    @property
    def extra(self) -> bool:
        return "extra" in self.stages


@dataclass(frozen=True)
class Problem:
    """A comment addressed to us but not understood: what is wrong, and the nearest valid form."""

    text: str
    nearest: str


def table() -> list[Entry]:
    """All forms, for help and docs."""
    return [RUN, COMMIT, *OPTIONS.values(), *VERBS.values()]


def parse(body: str) -> Command | Problem | None:
    """What a comment asks for; None if it is not addressed to us. Several different commands are a Problem."""
    lines = list(dict.fromkeys(_command_lines(body)))
    if not lines:
        return _nearly(body)
    if len(lines) > 1:
        return Problem("Your comment contains more than one command; please write one at a time.", lines[0])
    return _parse_line(lines[0])


# --- finding the line


def _command_lines(body: str) -> list[str]:
    return list(plain_lines(body, _is_command)) if TRIGGER in body.lower() else []


def _is_command(line: str) -> bool:
    words = line.lower().split(maxsplit=1)
    return bool(words) and (words[0] == TRIGGER or (len(words) == 1 and words[0].rstrip(_ENDS + "?") == TRIGGER))


def _is_nearly(line: str) -> bool:
    return _is_command(line) or _MENTION.match(line) is not None


def _nearly(body: str) -> Problem | None:
    """A line that a person would take for a command but that is not one: in bold, or after a mention.

    It is answered, but not executed.
    """
    body = body[:_NEAR]
    lines = plain_lines(body, _is_nearly, bold=True) if TRIGGER in body.lower() else []
    if not lines:
        return None
    found = _parse_line(_MENTION.sub("", lines[0]))
    form = RUN.form if isinstance(found, Problem) else VERBS[found.verb].form if found.verb in VERBS else RUN.form
    return Problem("Write the command at the start of a line, in plain text and without a mention before it.", form)


# --- reading the line


def _parse_line(line: str) -> Command | Problem:
    first, *others = line.split()
    if first.endswith("?"):
        return Problem(f"Unknown command {_quoted(first)}.", RUN.form)
    # Phones turn two hyphens into a dash; people write a space after commas and a full stop at the end.
    rest = " ".join(others).rstrip(_ENDS + " ").replace("—", "--").replace("–", "--").replace(", ", ",").replace("=", " ")
    words = rest.split()
    sha, extra, quick, upgrade_from = "", False, False, ""
    stages: tuple[str, ...] = ()
    if len(words) == 2 and words[0].lower() == "approve" and is_sha(words[1]):
        return Command("approve", words[1].lower(), line=line[:200])
    if " ".join(words).lower() == RETRY_ALL:
        return Command(RETRY_ALL, line=line[:200])
    if words and words[0].lower() in VERBS:
        if len(words) > 1:
            return Problem(f"{_quoted(words[0])} takes no options.", VERBS[words[0].lower()].form)
        return Command(words[0].lower(), line=line[:200])
    while words:
        word = words.pop(0)
        if word.lower() == "--extra-tests":
            extra = True
        elif word.lower() == "--quick":
            quick = True
        elif word.lower() == "--stages":
            if not words:
                return Problem("`--stages` requires stage names.", OPTIONS["--stages"].form)
            chosen = _stages(words.pop(0))
            if isinstance(chosen, Problem):
                return chosen
            stages = chosen
        elif word.lower() == "--from":
            if not words or not is_version(words[0]):
                return Problem("`--from` requires a published version.", OPTIONS["--from"].form)
            upgrade_from = words.pop(0)
        elif is_sha(word) and not sha:
            sha = word.lower()
        else:
            return _unknown(word)
    if quick and (stages or upgrade_from):
        return Problem("`--quick` has its own stages and start; it goes with `--extra-tests` only.", OPTIONS["--quick"].form)
    stages = stages or (QUICK_STAGES if quick else DEFAULT_STAGES)
    if extra:
        stages = in_order((*stages, "extra"))
    return Command("run", sha, stages, line[:200], upgrade_from, quick)


def _stages(text: str) -> tuple[str, ...] | Problem:
    names = [name for name in text.lower().split(",") if name]
    for name in names:
        if name not in STAGES:
            nearest = get_close_matches(name, STAGES, 1, 0.5)
            fixed = ",".join(
                dict.fromkeys(nearest[0] if other == name and nearest else other for other in names if other in STAGES or nearest)
            )
            form = (
                f"!testme --stages {fixed}"
                if nearest and all(part in STAGES for part in fixed.split(","))
                else OPTIONS["--stages"].form
            )
            return Problem(f"Unknown stage {_quoted(name)}. The stages are: {', '.join(STAGES)}.", form)
    if not names:
        return Problem("`--stages` requires stage names.", OPTIONS["--stages"].form)
    return in_order(names)


def _unknown(word: str) -> Problem:
    known = {**{name: entry.form for name, entry in VERBS.items()}, **{name: entry.form for name, entry in OPTIONS.items()}}
    nearest = get_close_matches(word.lower(), known, 1, 0.5)
    if word.startswith("-"):
        return Problem(f"Unknown option {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)
    if set(word.lower()) <= set("0123456789abcdef"):
        return Problem(f"{_quoted(word)} is too short (or too long) for a commit id: write at least 7 digits.", COMMIT.form)
    return Problem(f"Unknown command {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)


def _quoted(word: str) -> str:
    """A word from a comment, shortened, and stripped of characters that would end the code span or mention people."""
    clean = "".join(char for char in word[:40] if char.isprintable() and char not in "`@<>|")
    return f"`{clean}`" if clean else "that"
