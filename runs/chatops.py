"""Comment text -> Command | Problem | nothing. Pure, and never an exception, whatever the text.

A command stands at the start of a line of the comment as the forge shows it (`runs.comment_text`). VERBS and OPTIONS are the one
table for the parser, the help text and the docs.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from enrollment.trust import is_sha
from runs.comment_text import plain_lines
from runs.harness.protocol import DEFAULT_STAGES, STAGES

TRIGGER = "!testme"


@dataclass(frozen=True)
class Entry:
    """A row of the table: how it is written, and what it does."""

    form: str
    text: str


VERBS = {
    "help": Entry("!testme help", "Say what can be written here."),
    "status": Entry("!testme status", "Say how the newest run of this pull request stands."),
    "cancel": Entry("!testme cancel", "Stop the run of this pull request and tear it down."),
    "retry": Entry("!testme retry", "Run all stages again on the commit of the newest run."),
    "approve": Entry("!testme approve", "Let the run begin that waits for an outsider's commit; its whole id goes behind it."),
}
OPTIONS = {
    "--extra-tests": Entry("!testme --extra-tests", "Also run the recipe's extra (heavy) tests."),
    "--stages": Entry("!testme --stages install,custom", f"Run just these stages. There are: {', '.join(STAGES)}."),
}
RUN = Entry("!testme", f"Deploy the newest commit and run its tests ({', '.join(DEFAULT_STAGES)}).")
COMMIT = Entry("!testme 1234567", "The same for this commit of the pull request (at least 7 digits; an outsider's: all of them).")


@dataclass(frozen=True)
class Command:
    verb: str  #: run, help, status, cancel, retry or approve
    sha: str = ""
    stages: tuple[str, ...] = DEFAULT_STAGES
    line: str = ""

    @property
    def extra(self) -> bool:
        return "extra" in self.stages


@dataclass(frozen=True)
class Problem:
    """Spoken to us, but not understood: what it is about, and the nearest valid form."""

    text: str
    nearest: str


def table() -> list[Entry]:
    """All that can be written, for help and docs."""
    return [RUN, COMMIT, *OPTIONS.values(), *VERBS.values()]


def parse(body: str) -> Command | Problem | None:
    """What a comment asks for; None when it does not speak to us. Several commands that differ are a Problem."""
    lines = list(dict.fromkeys(_command_lines(body)))
    if not lines:
        return None
    if len(lines) > 1:
        return Problem("There is more than one command in your comment, and I take one at a time.", lines[0])
    return _parse_line(lines[0])


# --- finding the line


def _command_lines(body: str) -> list[str]:
    return list(plain_lines(body, _is_command)) if TRIGGER in body.lower() else []


def _is_command(line: str) -> bool:
    words = line.split(maxsplit=1)
    return bool(words) and words[0].lower() == TRIGGER


# --- reading the line


def _parse_line(line: str) -> Command | Problem:
    # Telephones make one long dash of two short ones, and people put a space behind a comma.
    rest = " ".join(line.split()[1:]).replace("—", "--").replace("–", "--").replace(", ", ",").replace("=", " ")
    words = rest.split()
    sha, extra = "", False
    stages: tuple[str, ...] = DEFAULT_STAGES
    if len(words) == 2 and words[0].lower() == "approve" and is_sha(words[1]):
        return Command("approve", words[1].lower(), line=line[:200])
    if words and words[0].lower() in VERBS:
        if len(words) > 1:
            return Problem(f"{_quoted(words[0])} stands alone.", VERBS[words[0].lower()].form)
        return Command(words[0].lower(), line=line[:200])
    while words:
        word = words.pop(0)
        if word.lower() == "--extra-tests":
            extra = True
        elif word.lower() == "--stages":
            if not words:
                return Problem("`--stages` needs the names of stages.", OPTIONS["--stages"].form)
            chosen = _stages(words.pop(0))
            if isinstance(chosen, Problem):
                return chosen
            stages = chosen
        elif is_sha(word) and not sha:
            sha = word.lower()
        else:
            return _unknown(word)
    if extra:
        stages = tuple(stage for stage in STAGES if stage in stages or stage == "extra")
    return Command("run", sha, stages, line[:200])


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
            return Problem(f"There is no stage {_quoted(name)}. There are: {', '.join(STAGES)}.", form)
    if not names:
        return Problem("`--stages` needs the names of stages.", OPTIONS["--stages"].form)
    return tuple(stage for stage in STAGES if stage in names)


def _unknown(word: str) -> Problem:
    known = {**{name: entry.form for name, entry in VERBS.items()}, **{name: entry.form for name, entry in OPTIONS.items()}}
    nearest = get_close_matches(word.lower(), known, 1, 0.5)
    if word.startswith("-"):
        return Problem(f"I know no option {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)
    if set(word.lower()) <= set("0123456789abcdef"):
        return Problem(f"{_quoted(word)} is too short (or too long) for a commit: write at least 7 digits of it.", COMMIT.form)
    return Problem(f"I do not understand {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)


def _quoted(word: str) -> str:
    """A stranger's word in a reply: short, and nothing in it that would end the code or call people."""
    clean = "".join(char for char in word[:40] if char.isprintable() and char not in "`@<>|")
    return f"`{clean}`" if clean else "that"
