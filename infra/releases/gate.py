"""Which version an app may be upgraded to, and why not to another. Pure: everything it knows is in GateFacts.

Blockers come in three scopes. A *cumulative* one stops a version and every one above it, because an upgrade passes through
all versions between. One *of the version* stops only that version. One *of the app* stops every upgrade for now. An approval
waives those cumulative blockers of one version that were shown when it was given. RULES lists all reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from controlplane.time_window import Window
from infra.config.schema import Policy, seconds
from infra.recipe_version import Version
from infra.release_notes import Passage, manual_passages

Scope = Literal["cumulative", "version", "app"]


@dataclass(frozen=True)
class Blocker:
    """One reason against an upgrade. `version`: where it arises, possibly below the version that it stops."""

    kind: str
    scope: Scope
    text: str
    remedy: str
    version: str = ""
    passages: tuple[Passage, ...] = ()

    @property
    def key(self) -> str:
        """What an approval stores: if the passages change, it is another blocker."""
        words = "\n".join(passage.text for passage in self.passages)
        mark = f":{hashlib.sha256(words.encode()).hexdigest()[:12]}" if words else ""
        return f"{self.kind}:{self.version}{mark}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for rows and programs."""
        return {
            "kind": self.kind,
            "scope": self.scope,
            "version": self.version,
            "text": self.text,
            "lift": self.remedy,
            "key": self.key,
            "passages": [{"line": p.line, "text": p.text, "start": p.start, "end": p.end} for p in self.passages],
        }


@dataclass(frozen=True)
class Evidence:
    """Test results of this server for a version. `run`: a link. `lint`: a sentence for each rule that failed."""

    passed: bool = False
    run: str = ""
    lint: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """A known version. `quarantined`: why, if it is. `waived`: keys of the blockers that its approval waives."""

    version: Version
    published_at: datetime
    annotated: bool = True
    notes: str | None = None
    quarantined: str = ""
    waived: frozenset[str] = frozenset()
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Preflight:
    """What preflight found, one sentence each; empty if there is no problem or nothing was checked."""

    drift: str = ""
    unhealthy: str = ""
    busy: str = ""
    disk: str = ""
    old_image: str = ""


_POLICY, _ALWAYS, _UNSEEN = Policy(), Window(), Preflight()


@dataclass(frozen=True)
class GateFacts:
    """All inputs of the gate. Each text is a sentence that states a problem; an empty one means there is none."""

    app: str
    now: datetime
    running: Version | None
    releases: Sequence[Release]
    policy: Policy = _POLICY
    window: Window = _ALWAYS
    ours: bool = True  #: the owner is cc-ci
    any_time: bool = False  #: a person asked for it now: the window and the host's load are ignored
    by_hand: str = ""  #: the command its maintainers run, without the version
    drifted: bool = False  #: unexpected changes were found before
    under_way: str = ""
    rollback_failed: str = ""
    preflight: Preflight = _UNSEEN


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict on one version."""

    version: Version
    blockers: tuple[Blocker, ...]
    waived: tuple[Blocker, ...] = ()  #: by approval

    @property
    def passes(self) -> bool:
        return not self.blockers

    @property
    def held(self) -> bool:
        """Whether it waits for a person's approval."""
        return any(blocker.scope == "cumulative" for blocker in self.blockers)


@dataclass(frozen=True)
class Plan:
    """What may be done with an app now, and why not more."""

    app: str
    running: Version | None
    target: Version | None  #: the highest version that passes
    blockers: tuple[Blocker, ...]  #: of the app
    verdicts: tuple[Verdict, ...]  #: of each version above the running one, lowest first

    @property
    def takes(self) -> Version | None:
        """The version to upgrade to now, or None."""
        return None if self.blockers else self.target

    @property
    def newest(self) -> Version | None:
        return self.verdicts[-1].version if self.verdicts else None

    def verdict(self, version: Version) -> Verdict | None:
        return next((verdict for verdict in self.verdicts if verdict.version == version), None)

    def __str__(self) -> str:
        """The plan as lines of text."""
        if self.takes:
            head = f"{self.app}: {self.running} → {self.takes}"
        elif self.target:
            head = f"{self.app}: stays at {self.running or 'what runs'}; {self.target} is available, but"
        else:
            head = f"{self.app}: stays at {self.running or 'what runs'}"
        lines = [head, *(f"  {blocker.text} {blocker.remedy}" for blocker in self.blockers)]
        for verdict in reversed(self.verdicts):
            words = [f"    {blocker.text} {blocker.remedy}" for blocker in verdict.blockers]
            lines += [f"  {verdict.version}: {'held' if verdict.held else 'blocked for now'}", *words] if words else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Rule:
    """A reason that holds an upgrade. `check` returns what it found, or something false; it fills in `text` and `remedy`.

    `check` gets the facts and the release, or with scope `app` the version to upgrade to. `once`: the cumulative reason counts
    for all versions above, once for each value.
    """

    kind: str
    scope: Scope
    check: Callable[[GateFacts, Any], object]
    text: str
    remedy: str
    once: Callable[[Version], object] | None = None

    def blocker(self, facts: GateFacts, subject: Release | Version | None) -> Blocker | None:
        found = self.check(facts, subject)
        if not found:
            return None
        release = subject if isinstance(subject, Release) else None
        words = {"found": found, "facts": facts, "app": facts.app, "version": release.version if release else ""}
        passages = found if isinstance(found, _Passages) else ()
        text, remedy = self.text.format_map(words), self.remedy.format_map(words)
        return Blocker(self.kind, self.scope, text, remedy, str(words["version"]), passages)


def _recipe_major(facts: GateFacts, release: Release) -> str:
    before, after = _running(facts).recipe_major, release.version.recipe_major
    return f"{before} to {after}" if facts.policy.left_major == "hold" and after > before else ""


def _app_major(facts: GateFacts, release: Release) -> str:
    before, after = _running(facts).app_major, release.version.app_major
    return f"{_major(before)} to {_major(after)}" if facts.policy.right_major == "hold" and after != before else ""


def _major(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _running(facts: GateFacts) -> Version:
    assert facts.running is not None  # else there is no version above it, and none is judged
    return facts.running


def _beyond_auto(facts: GateFacts, release: Release) -> str:
    auto = facts.policy.auto
    if auto == "none":
        return "The policy allows no unattended upgrade."
    more = auto == "patch" and release.version.left[:2] > _running(facts).left[:2]
    return "This is more than a patch release of the recipe." if more else ""


class _Passages(tuple[Passage, ...]):
    def __str__(self) -> str:
        return _first([f"“{passage.text}”" for passage in self])


def _manual_work(facts: GateFacts, release: Release) -> _Passages:
    policy = facts.policy
    return _Passages(manual_passages(release.notes or "", policy.manual_patterns, policy.harmless_patterns))


def _first(found: Sequence[str]) -> str:
    return f"{found[0]} and {len(found) - 1} more" if found[1:] else "".join(found)


def _cooldown(facts: GateFacts, release: Release) -> str:
    old_enough = release.published_at + timedelta(seconds=seconds(facts.policy.cooldown))
    return f"{old_enough:%Y-%m-%d %H:%M} UTC" if facts.now < old_enough else ""


def _not_tested(facts: GateFacts, release: Release) -> str:
    evidence = release.evidence
    if not facts.policy.need_test_run or (evidence and evidence.passed):
        return ""
    failed = evidence.run if evidence else ""
    return (
        f"Its last test run on this server did not pass: {failed}." if failed else "It has not passed a test run on this server."
    )


def _by_hand(facts: GateFacts, target: Version | None) -> str:
    if facts.ours:
        return ""
    manage = "To let cc-ci manage it:"
    return f"They run: {facts.by_hand} {target}. {manage}" if facts.by_hand and target else manage


def _window(facts: GateFacts, target: Version | None) -> str:
    closed = not facts.any_time and not facts.window.contains(facts.now)
    return f"{facts.window.opens(facts.now):%Y-%m-%d %H:%M} UTC" if closed else ""


#: All reasons, in the order in which they are shown. docs/infra.md lists them.
RULES: tuple[Rule, ...] = (
    Rule("beyond_auto", "cumulative", _beyond_auto, "{found}", "The policy says `auto: {facts.policy.auto}`."),
    Rule(
        "left_major",
        "cumulative",
        _recipe_major,
        "The recipe's major version changes from {found}: manual work may be needed.",
        "Read the release notes.",
        once=lambda version: version.recipe_major,
    ),
    Rule(
        "right_major",
        "cumulative",
        _app_major,
        "The app's major version changes from {found}.",
        "Read the app's own release notes.",
        once=lambda version: version.app_major,
    ),
    Rule(
        "missing_notes",
        "cumulative",
        lambda facts, release: release.notes is None and facts.policy.missing_notes == "hold",
        "There are no release notes.",
        "Check what changed in the recipe.",
        once=str,
    ),
    Rule(
        "manual_work",
        "cumulative",
        _manual_work,
        "The release notes ask for manual work: {found}.",
        "Do what they ask.",
        once=str,
    ),
    Rule(
        "not_annotated",
        "version",
        lambda facts, release: not release.annotated,
        "Its tag is lightweight; a release needs an annotated tag.",
        "In the recipe's repository: git tag -a -f {version} {version}^{{}} && git push -f origin {version}",
    ),
    Rule("cooldown", "version", _cooldown, "It is less than {facts.policy.cooldown} old.", "Wait until {found}."),
    Rule(
        "quarantined",
        "version",
        lambda facts, release: release.quarantined,
        "It is quarantined: {found}",
        "Wait for a newer version, or release this one: cc-ci infra lift {app} {version}",
    ),
    Rule(
        "lint_failed",
        "version",
        lambda facts, release: _first(release.evidence.lint if release.evidence else ()),
        "It failed lint: {found}",
        "Wait for a version that fixes it.",
    ),
    Rule(
        "not_tested", "version", _not_tested, "{found}", "Wait for a test run of it that passes, or set `need_test_run: false`."
    ),
    Rule(
        "maintainers",
        "app",
        _by_hand,
        "This app is managed by its maintainers; cc-ci changes nothing.",
        "{found} cc-ci infra adopt {app}",
    ),
    Rule(
        "contested",
        "app",
        lambda facts, _: facts.preflight.drift or (facts.drifted and "it was changed outside cc-ci."),
        "It has drifted: {found}",
        "Choose: cc-ci infra adopt {app}, restore-ours {app} or hand-over {app}",
    ),
    Rule(
        "unknown_version",
        "app",
        lambda facts, _: facts.running is None,
        "The version of what runs cannot be read, so no release can be compared with it.",
        "Deploy a tagged version that sets the version label.",
    ),
    Rule(
        "under_way", "app", lambda facts, _: facts.under_way, "An upgrade is already running: {found}", "Wait for it to finish."
    ),
    Rule(
        "rollback_failed",
        "app",
        lambda facts, _: facts.rollback_failed,
        "A rollback failed, and nothing has been touched since: {found}",
        "Repair it manually, then: cc-ci infra adopt {app}",
    ),
    Rule(
        "sick",
        "app",
        lambda facts, _: facts.preflight.unhealthy,
        "The app is already unhealthy: {found}",
        "Fix this first, or the upgrade will be blamed for it.",
    ),
    Rule(
        "busy",
        "app",
        lambda facts, _: not facts.any_time and facts.preflight.busy,
        "The host is busy: {found}",
        "Wait, or use --now.",
    ),
    Rule(
        "disk",
        "app",
        lambda facts, _: facts.preflight.disk,
        "Not enough space for a snapshot: {found}",
        "Free some space, or use another store.",
    ),
    Rule(
        "old_image",
        "app",
        lambda facts, _: facts.preflight.old_image,
        "Rollback is not possible: {found}",
        "Run docker pull for that image.",
    ),
    Rule("window", "app", _window, "It is outside the maintenance window {facts.window}.", "Wait until {found}, or use --now."),
)


def decide(facts: GateFacts) -> Plan:
    """Judge every version above the running one, and choose the highest that passes."""
    above = sorted((r for r in facts.releases if facts.running and r.version > facts.running), key=lambda r: r.version)
    verdicts: list[Verdict] = []
    on_the_way: dict[tuple[str, object], Blocker] = {}
    for release in above:
        here = list(_of(facts, "cumulative", release))
        for rule, blocker in here:
            if rule.once:
                on_the_way.setdefault((rule.kind, rule.once(release.version)), blocker)
        cumulative = [*(blocker for rule, blocker in here if not rule.once), *on_the_way.values()]
        waived = tuple(blocker for blocker in cumulative if blocker.key in release.waived)
        left = [blocker for blocker in cumulative if blocker.key not in release.waived]
        own = [blocker for _, blocker in _of(facts, "version", release)]
        verdicts.append(Verdict(release.version, (*_approvable(facts, release, left), *own), waived))
    target = max((verdict.version for verdict in verdicts if verdict.passes), default=None)
    blockers = tuple(blocker for _, blocker in _of(facts, "app", target))
    return Plan(facts.app, facts.running, target, blockers, tuple(verdicts))


def _of(facts: GateFacts, scope: Scope, subject: Release | Version | None) -> Iterator[tuple[Rule, Blocker]]:
    for rule in RULES:
        if rule.scope == scope and (blocker := rule.blocker(facts, subject)):
            yield rule, blocker


def _approvable(facts: GateFacts, release: Release, blockers: Sequence[Blocker]) -> Iterator[Blocker]:
    """The blockers, each with the command that approves this version."""
    for blocker in blockers:
        where = "" if blocker.version == str(release.version) else f" Introduced by {blocker.version}."
        remedy = f"{blocker.remedy} To allow it: cc-ci infra approve {facts.app} {release.version}"
        yield replace(blocker, text=f"{blocker.text}{where}", remedy=remedy)


def evidence_of(answer: Mapping[str, Any] | None) -> Evidence | None:
    """Read the answer to `controlplane.registry.ask("version_evidence", recipe, version)`: `passed`, `run`, `lint`."""
    if not answer:
        return None
    lint = answer.get("lint") or ()
    return Evidence(bool(answer.get("passed")), str(answer.get("run") or ""), tuple(str(text) for text in lint))
