"""What an upgrade requires of operators with the published version: `abra app upgrade` keeps the `.env` they installed with.

Pure except for reading both untrusted checkouts; runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.deployers.compose import notes
from infra.deployers.compose.environment import names_secret_version
from infra.deployers.compose.recipe import compose_files
from infra.recipe_version import Unreadable, Version
from runs.harness import lint
from runs.harness.protocol import LintFinding


@dataclass(frozen=True)
class Missing:
    """A variable new in the sample, used by a compose file without a default, and mentioned in no release note."""

    name: str
    value: str  #: in the new sample
    file: str

    @property
    def message(self) -> str:
        # An example's address is nobody's default.
        value = self.value if len(self.value) < 40 and not re.search(r"\n|\bexample\.(com|org|net)\b", self.value) else "…"
        return (
            f"{self.name} is new in .env.sample and has no default in {self.file}: write ${{{self.name}:-{value}}} "
            "there, or mention it in release/<version>."
        )


@dataclass(frozen=True)
class Change:
    """What changes for those who upgrade."""

    missing: tuple[Missing, ...] = ()
    documented: tuple[str, ...] = ()  #: variables like these that the notes name
    secrets: tuple[str, ...] = ()  #: versions of secrets that are new in the sample
    notes: frozenset[str] = frozenset()  #: the words of the release notes that are new
    overlays: tuple[str, ...] = ()  #: compose files that only the new sample's COMPOSE_FILE names
    volumes: tuple[str, ...] = ()  #: volumes that only the published version has

    @property
    def by_hand(self) -> list[str]:
        """What operators have to do, which makes the version a new major one."""
        names = (*(missing.name for missing in self.missing), *self.documented)
        return [
            *(f"the variable {name} is new and has no default" for name in names),
            *(f"the secret of {name} is new" for name in self.secrets),
            *(f"the volume {name} was removed" for name in self.volumes),
        ]


def change(installed: Path, checkout: Path) -> Change:
    """Compare the recipe in `checkout` with the `installed` one. Never raises: unreadable files count as empty."""
    before, now = lint.read(installed), lint.read(checkout)
    added = {name: value for name, value in now.sample.items() if name not in before.sample}
    mentioned = notes.mentioned(checkout, installed)
    old_files = dict.fromkeys(compose_files(before.sample))
    uses = {file.name: lint.without_default(file.data) for file in now.files if file.name in old_files}
    missing, documented = [], []
    for name, value in added.items():
        if not value or name in lint.GIVEN or name in now.exported or names_secret_version(name):
            continue
        if file := next((file for file, used in uses.items() if name in used), ""):
            if name in mentioned:
                documented.append(name)
            else:
                missing.append(Missing(name, value, file))
    kept = {name for file in now.files for name, _ in file.items("volumes")}
    had = dict.fromkeys(name for file in before.files if file.name in old_files for name, _ in file.items("volumes"))
    return Change(
        tuple(missing),
        tuple(documented),
        tuple(name for name in added if names_secret_version(name)),
        mentioned,
        tuple(name for name in dict.fromkeys(compose_files(now.sample)) if name not in old_files),
        tuple(name for name in had if name not in kept),
    )


def findings(found: Change, previous: str, version: str) -> Iterator[LintFinding]:
    """Lint findings for the change from the version `previous` to the one with the label `version`."""
    for missing in found.missing:
        yield lint.finding("C020", missing.message, missing.file)
    for name in found.secrets:
        short = name.removeprefix("SECRET_").removesuffix("_VERSION")
        if found.notes & {name, short, short.lower()}:
            continue
        yield lint.finding(
            "C021", f"The secret of {name} is new: operators who upgrade have to add the line and create the secret."
        )
    for name in found.overlays:
        yield lint.finding(
            "C022", f"COMPOSE_FILE in .env.sample names {name}, which operators who upgrade do not get.", ".env.sample"
        )
    try:
        before, now = Version.parse(previous), Version.parse(version)
    except Unreadable:
        return  # rule C005 says so
    if found.by_hand and now.recipe_major <= before.recipe_major:
        why = "; ".join(found.by_hand)
        yield lint.finding(
            "C023",
            f"{'The next version' if version == previous else version} requires operators to act ({why}), so it has to be "
            f"a new major version after {previous}.",
        )
