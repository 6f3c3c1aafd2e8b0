"""Which version an app may be upgraded to, and why not to another. Pure: everything it knows is in GateFacts.

Blockers come in three scopes. A *cumulative* one stops a version and every one above it, for an upgrade goes through all that
lies between. One *of the version* stops just that version. One *of the app* stops every upgrade for now. An approval lifts
the cumulative blockers of one version, those that were shown when it was given.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from infra.schema import Policy, seconds
from infra.versions import Version
from infra.window import Window


class Kind(StrEnum):
    """The name of a blocker."""

    # cumulative
    LEFT_MAJOR = "left_major"
    RIGHT_MAJOR = "right_major"
    BEYOND_AUTO = "beyond_auto"
    MANUAL_WORK = "manual_work"
    MISSING_NOTES = "missing_notes"
    # of the version
    COOLDOWN = "cooldown"
    QUARANTINED = "quarantined"
    LINT_FAILED = "lint_failed"
    NOT_TESTED = "not_tested"
    NOT_ANNOTATED = "not_annotated"
    # of the app
    MAINTAINERS = "maintainers"
    CONTESTED = "contested"
    UNKNOWN_VERSION = "unknown_version"
    UNDER_WAY = "under_way"
    ROLLBACK_FAILED = "rollback_failed"
    SICK = "sick"
    BUSY = "busy"
    DISK = "disk"
    OLD_IMAGE = "old_image"
    WINDOW = "window"


Scope = Literal["cumulative", "version", "app"]
CUMULATIVE = frozenset({Kind.LEFT_MAJOR, Kind.RIGHT_MAJOR, Kind.BEYOND_AUTO, Kind.MANUAL_WORK, Kind.MISSING_NOTES})
OF_THE_VERSION = frozenset({Kind.COOLDOWN, Kind.QUARANTINED, Kind.LINT_FAILED, Kind.NOT_TESTED, Kind.NOT_ANNOTATED})


@dataclass(frozen=True)
class Passage:
    """A line of release notes that speaks of work by hand, and where in it the word stands."""

    line: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Blocker:
    """One reason against an upgrade. `version`: the one at which it arises, which may lie on the way to the one it stops."""

    kind: Kind
    text: str
    lift: str
    version: str = ""
    passages: tuple[Passage, ...] = ()

    @property
    def scope(self) -> Scope:
        return "cumulative" if self.kind in CUMULATIVE else "version" if self.kind in OF_THE_VERSION else "app"

    @property
    def key(self) -> str:
        """What an approval remembers: other words in the notes are another blocker."""
        words = "\n".join(passage.text for passage in self.passages)
        mark = f":{hashlib.sha256(words.encode()).hexdigest()[:12]}" if words else ""
        return f"{self.kind}:{self.version}{mark}"

    def as_dict(self) -> dict[str, Any]:
        """For rows and for programs."""
        return {
            "kind": str(self.kind),
            "scope": self.scope,
            "version": self.version,
            "text": self.text,
            "lift": self.lift,
            "key": self.key,
            "passages": [{"line": p.line, "text": p.text, "start": p.start, "end": p.end} for p in self.passages],
        }


@dataclass(frozen=True)
class Evidence:
    """What this server's tests said of a version. `run` is a link; `lint` has a sentence for each rule that failed."""

    passed: bool = False
    run: str = ""
    lint: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """A version that there is. `quarantined`: why, if it is. `lifted`: keys of the blockers that its approval lifts."""

    version: Version
    published_at: datetime
    annotated: bool = True
    notes: str | None = None
    quarantined: str = ""
    lifted: frozenset[str] = frozenset()
    evidence: Evidence | None = None


_POLICY, _ALWAYS = Policy(), Window()


@dataclass(frozen=True)
class GateFacts:
    """All that the gate knows. Of the texts each says what is the matter, in a sentence; an empty one means: nothing."""

    app: str
    now: datetime
    running: Version | None
    releases: Sequence[Release]
    policy: Policy = _POLICY
    window: Window = _ALWAYS
    ours: bool = True  #: the owner is cc-ci
    any_time: bool = False  #: a person asked for it now: neither the window nor a busy machine counts
    by_hand: str = ""  #: what its maintainers type, without the version
    contested: str = ""
    under_way: str = ""
    rollback_failed: str = ""
    sick: str = ""
    busy: str = ""
    disk: str = ""
    old_image: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one version."""

    version: Version
    blockers: tuple[Blocker, ...]
    lifted: tuple[Blocker, ...] = ()  #: by approval

    @property
    def passes(self) -> bool:
        return not self.blockers

    @property
    def held(self) -> bool:
        """Whether it waits for a person."""
        return any(blocker.scope == "cumulative" for blocker in self.blockers)


@dataclass(frozen=True)
class Plan:
    """What may be done with an app now, and why nothing more."""

    app: str
    running: Version | None
    target: Version | None  #: the highest version that passes
    blockers: tuple[Blocker, ...]  #: of the app
    verdicts: tuple[Verdict, ...]  #: of each version above the running one, lowest first

    @property
    def takes(self) -> Version | None:
        """The version to upgrade to now; None: stay."""
        return None if self.blockers else self.target

    @property
    def newest(self) -> Version | None:
        return self.verdicts[-1].version if self.verdicts else None

    def verdict(self, version: Version) -> Verdict | None:
        return next((verdict for verdict in self.verdicts if verdict.version == version), None)

    def __str__(self) -> str:
        """The plan in lines for people."""
        if self.takes:
            head = f"{self.app}: {self.running} → {self.takes}"
        elif self.target:
            head = f"{self.app}: stays at {self.running or 'what runs'}; {self.target} could come, but"
        else:
            head = f"{self.app}: stays at {self.running or 'what runs'}"
        lines = [head, *(f"  {blocker.text} {blocker.lift}" for blocker in self.blockers)]
        for verdict in reversed(self.verdicts):
            words = [f"    {blocker.text} {blocker.lift}" for blocker in verdict.blockers]
            lines += [f"  {verdict.version}: {'held' if verdict.held else 'not now'}", *words] if words else []
        return "\n".join(lines)


def decide(facts: GateFacts) -> Plan:
    """Judge every version above the running one, and take the highest that passes."""
    above = sorted((r for r in facts.releases if facts.running and r.version > facts.running), key=lambda r: r.version)
    verdicts: list[Verdict] = []
    on_the_way: dict[tuple[str, ...], Blocker] = {}
    for release in above:
        for step, blocker in _on_the_way(facts, release):
            on_the_way.setdefault(step, blocker)
        cumulative = [*_too_far(facts, release), *on_the_way.values()]
        lifted = tuple(blocker for blocker in cumulative if blocker.key in release.lifted)
        left = [blocker for blocker in cumulative if blocker.key not in release.lifted]
        verdicts.append(Verdict(release.version, (*_approvable(facts, release, left), *_of_version(facts, release)), lifted))
    target = max((verdict.version for verdict in verdicts if verdict.passes), default=None)
    return Plan(facts.app, facts.running, target, tuple(_of_app(facts, target)), tuple(verdicts))


def _approvable(facts: GateFacts, release: Release, blockers: Sequence[Blocker]) -> Iterator[Blocker]:
    """The blockers, each with the command that approves this version."""
    for blocker in blockers:
        where = "" if blocker.version == str(release.version) else f" On the way, at {blocker.version}."
        lift = f"{blocker.lift} If all is well: cc-ci infra approve {facts.app} {release.version}"
        yield Blocker(blocker.kind, f"{blocker.text}{where}", lift, blocker.version, blocker.passages)


def _too_far(facts: GateFacts, release: Release) -> Iterator[Blocker]:
    """What the size of the step alone says. Where it stops a version it stops all above."""
    running, version, auto = facts.running, release.version, facts.policy.auto
    if running and (auto == "none" or (auto == "patch" and version.left[:2] > running.left[:2])):
        text = "The policy takes no version without asking." if auto == "none" else "This is more than a patch of the recipe."
        yield Blocker(Kind.BEYOND_AUTO, text, f"The policy says `auto: {auto}`.", str(version))


def _on_the_way(facts: GateFacts, release: Release) -> Iterator[tuple[tuple[str, ...], Blocker]]:
    """What a version brings with it for itself and all above; each with what it is about, for it counts once where it comes
    first: a major in all its versions, the notes in each."""
    running, version, policy, name = facts.running, release.version, facts.policy, str(release.version)
    assert running is not None
    if policy.left_major == "hold" and version.left_major > running.left_major:
        text = f"The recipe's major goes from {running.left_major} to {version.left_major}: an operator's hands may be needed."
        yield ("left", str(version.left_major)), Blocker(Kind.LEFT_MAJOR, text, "Read the notes.", name)
    if policy.right_major == "hold" and version.right_major != running.right_major:
        text = f"The app's own major goes from {_major(running.right_major)} to {_major(version.right_major)}."
        blocker = Blocker(Kind.RIGHT_MAJOR, text, "Read what its makers say about it.", name)
        yield ("right", _major(version.right_major)), blocker
    if release.notes is None:
        if policy.missing_notes == "hold":
            blocker = Blocker(Kind.MISSING_NOTES, "There are no release notes.", "See what changed in the recipe.", name)
            yield ("notes", name), blocker
    elif passages := manual_passages(release.notes, policy.manual_patterns):
        words = passages[0].text
        text = f"The notes speak of work by hand: “{words}”{f' and {len(passages) - 1} more' if passages[1:] else ''}."
        yield ("notes", name), Blocker(Kind.MANUAL_WORK, text, "Do what they ask.", name, passages)


def _major(number: int | None) -> str:
    return "none that can be read" if number is None else str(number)


def _of_version(facts: GateFacts, release: Release) -> Iterator[Blocker]:
    name, evidence = str(release.version), release.evidence
    if not release.annotated:
        text = "Its tag is lightweight, so nobody stands for it."
        lift = f"In the recipe: git tag -a -f {name} {name}^{{}} && git push -f origin {name}"
        yield Blocker(Kind.NOT_ANNOTATED, text, lift, name)
    old_enough = release.published_at + timedelta(seconds=seconds(facts.policy.cooldown))
    if facts.now < old_enough:
        text = f"It is younger than {facts.policy.cooldown}."
        yield Blocker(Kind.COOLDOWN, text, f"By itself on {old_enough:%Y-%m-%d %H:%M} UTC.", name)
    if release.quarantined:
        lift = f"A newer version, or: cc-ci infra lift {facts.app} {name}"
        yield Blocker(Kind.QUARANTINED, f"It is quarantined: {release.quarantined}", lift, name)
    if evidence and evidence.lint:
        text = f"Its lint failed: {evidence.lint[0]}{f' and {len(evidence.lint) - 1} more' if evidence.lint[1:] else ''}"
        yield Blocker(Kind.LINT_FAILED, text, "A version that mends it.", name)
    if facts.policy.need_test_run and not (evidence and evidence.passed):
        failed = f"Its last test run on this server did not pass: {evidence.run}." if evidence and evidence.run else ""
        text = failed or "It has passed no test run on this server."
        yield Blocker(Kind.NOT_TESTED, text, "A run of that version that passes, or `need_test_run: false`.", name)


def _of_app(facts: GateFacts, target: Version | None) -> Iterator[Blocker]:
    app = facts.app
    if not facts.ours:
        by_hand = f"They type: {facts.by_hand} {target}. " if facts.by_hand and target else ""
        yield Blocker(
            Kind.MAINTAINERS, "It is its maintainers', and cc-ci changes nothing.", f"{by_hand}Or: cc-ci infra adopt {app}"
        )
    if facts.contested:
        lift = f"cc-ci infra adopt {app}, restore-ours {app} or hand-over {app}"
        yield Blocker(Kind.CONTESTED, f"It is contested: {facts.contested}", lift)
    if facts.running is None:
        text = "No version can be read from what runs, so none can be compared."
        yield Blocker(Kind.UNKNOWN_VERSION, text, "Deploy a tagged version, whose label says which it is.")
    if facts.under_way:
        yield Blocker(Kind.UNDER_WAY, f"An upgrade is under way: {facts.under_way}", "Its end.")
    if facts.rollback_failed:
        lift = f"Mend it by hand, then: cc-ci infra adopt {app}"
        yield Blocker(Kind.ROLLBACK_FAILED, f"A rollback failed, and nothing was touched since: {facts.rollback_failed}", lift)
    if facts.sick:
        yield Blocker(Kind.SICK, f"It is not well as it is: {facts.sick}", "Mend it first: an upgrade would be blamed for it.")
    if facts.busy and not facts.any_time:
        yield Blocker(Kind.BUSY, f"The machine is busy: {facts.busy}", "By itself once it is not, or with --now.")
    if facts.disk:
        yield Blocker(Kind.DISK, f"There is no room for a snapshot: {facts.disk}", "Free some, or another store.")
    if facts.old_image:
        yield Blocker(Kind.OLD_IMAGE, f"The way back is not sure: {facts.old_image}", "docker pull of that image.")
    if not facts.any_time and not facts.window.contains(facts.now):
        opens = facts.window.opens(facts.now)
        lift = f"By itself on {opens:%Y-%m-%d %H:%M} UTC, or at once with --now."
        yield Blocker(Kind.WINDOW, f"It is outside the window {facts.window}.", lift)


def manual_passages(notes: str, patterns: Sequence[str]) -> tuple[Passage, ...]:
    """The lines of release notes that speak of work by hand, each with the first word that says so."""
    searched = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    passages = []
    for number, line in enumerate(notes.splitlines(), 1):
        shown = line[:2000]
        hits = [match for expression in searched if (match := expression.search(shown)) and match.group()]
        if hits:
            first = min(hits, key=lambda match: match.start())
            start = max(0, first.start() - 150)
            text = shown[start : start + 400]
            passages.append(Passage(number, text, first.start() - start, min(first.end() - start, len(text))))
    return tuple(passages[:50])


def evidence_of(answer: Mapping[str, Any] | None) -> Evidence | None:
    """Read what `controlplane.registry.ask("version_evidence", recipe, version)` answered: `passed`, `run`, `lint`."""
    if not answer:
        return None
    lint = answer.get("lint") or ()
    return Evidence(bool(answer.get("passed")), str(answer.get("run") or ""), tuple(str(text) for text in lint))
