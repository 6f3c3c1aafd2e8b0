"""The metadata in a recipe's README: what it claims, and what a run shows. Pure.

What the values mean is Co-op Cloud's convention: https://docs.coopcloud.tech/recipes/, "Status / features / scoring".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from runs.harness.protocol import Claim, StageResult, Verdict
from runs.harness.stage_table import DEFAULT_STAGES

NAMES = ("Category", "Status", "Image", "Healthcheck", "Backups", "Email", "Tests", "SSO")
START, END = "<!-- metadata -->", "<!-- endmetadata -->"

_VALUE = re.compile(r"^[ \t]*[*-][ \t]+\*\*([^*\n]{1,40})\*\*:[ \t]*(\S[^\n]{0,200})", re.MULTILINE)


def values(text: str) -> dict[str, str]:
    """What stands between the two marks of a README, by name; empty without them."""
    start, end = text.find(START), text.find(END)
    return {match[1]: match[2].strip() for match in _VALUE.finditer(text[start:end])} if 0 <= start < end else {}


def claims(
    claimed: Mapping[str, str], stages: Mapping[str, StageResult], verdict: Verdict, *, health: bool | None, connected: bool
) -> list[Claim]:
    """The values that a run can say something about. `health`: whether the service `app` was seen to have a health check;
    None if the deployer has none. `connected`: the app was given a realm of an OIDC provider.
    """
    passed = {name for name, result in stages.items() if result.status == "passed" and result.proven}
    none = {name for name, result in stages.items() if result.status == "not_applicable" and result.proven}
    whole = verdict is Verdict.PASSED and stages.keys() >= set(DEFAULT_STAGES)
    skipped = any(case.status == "skipped" for result in stages.values() for case in result.cases)
    # Before an upgrade it is the published version that runs, and of one that failed nobody knows which.
    of_commit = "upgrade" not in stages or stages["upgrade"].status in ("passed", "not_applicable")
    found = []
    if "install" in passed and of_commit and health is not None:
        why = "The service app has a health check, and was healthy." if health else "The service app has no health check."
        found.append(("Healthcheck", "Yes" if health else "No", why))
    if {"backup", "restore"} <= passed:
        found.append(("Backups", "Yes", "A backup was made and restored."))
    elif {"backup", "restore"} <= none:
        found.append(("Backups", "No", "The recipe declares no backups."))
    if whole and health is not None:
        what = "Deployed with its secrets and networks made automatically"
        found.append(("Tests", "3", f"{what}, and its health checked.") if health else ("Tests", "2", f"{what}."))
    if whole and connected and "custom" in passed and not skipped:
        found.append(("SSO", "3", "Connected to an OIDC provider by its environment alone, and its own tests passed."))
    return [
        Claim(name=name, says=(says := claimed.get(name, "")), shown=shown, agrees=_first(says) == shown.lower(), why=why)
        for name, shown, why in found
    ]


def _first(value: str) -> str:
    """The word that counts: `3 (OAuth)` and `❸💚` say 3, `**Yes**` and `✅` say yes."""
    word = re.search(r"\w+", value.replace("✅", " yes ").replace("❌", " no ").lower())
    return "".join(str(unicodedata.digit(one, one)) for one in word[0]) if word else ""
