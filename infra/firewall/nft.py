"""Runs the `nft` command: load our table, read it, remove it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field

from infra.firewall.rules import COUNTING, TABLE, Rules

_SECONDS = 20.0
_NO_TABLE = "No such file or directory"
_DENIED = "Operation not permitted"
#: The bridges whose connections are currently counted.
_COUNTED = re.compile(r"(?<=flags dynamic\n)\t\telements = \{[^{}]*\}\n")


class FirewallError(Exception):
    """The rules cannot be read or changed. `fix` is the command to type."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True)
class Loaded:
    """Our table as the kernel lists it."""

    text: str  #: as nft lists it, without what it counts
    counting: bool
    counts: dict[str, int] = field(default_factory=dict)  #: packets, by the comment of the rule


def apply(rules: Rules) -> bool:
    """Load the rules atomically. Returns whether anything changed; unchanged rules keep their counters. Raises FirewallError."""
    now = loaded()
    if now and now.text == listing(rules):
        return False
    _nft("--file", "-", given=rules.text())
    return True


def remove() -> bool:
    """Remove our table and nothing else. Returns whether it existed. Raises FirewallError."""
    if not loaded():
        return False
    _nft("delete", "table", "inet", TABLE)
    return True


def loaded() -> Loaded | None:
    """The loaded rules, if any. Raises FirewallError if they cannot be read."""
    listed = _nft("--stateless", "list", "table", "inet", TABLE, missing=_NO_TABLE)
    if not listed:
        return None
    counts: dict[str, int] = {}
    for item in json.loads(_nft("--json", "list", "table", "inet", TABLE)).get("nftables") or []:
        rule = item.get("rule") or {}
        for part in rule.get("expr") or []:
            if isinstance(part, dict) and isinstance(counter := part.get("counter"), dict):
                comment = str(rule.get("comment", ""))
                counts[comment] = counts.get(comment, 0) + int(counter.get("packets", 0))
    return Loaded(_COUNTED.sub("", listed), f", {COUNTING}" in listed.splitlines()[1], counts)


def listing(rules: Rules) -> str:
    """What `loaded` would return for these rules: nft normalizes them, so they are listed in a separate network namespace."""
    if not shutil.which("unshare"):
        raise FirewallError("The unshare command is missing.", "apt-get install util-linux")
    script = f"nft --file - && exec nft --stateless list table inet {TABLE}"
    return _run(["unshare", "--net", "sh", "-c", script], rules.text())


def _nft(*arguments: str, given: str = "", missing: str = "") -> str:
    return _run(["nft", *arguments], given, missing)


def _run(command: list[str], given: str, missing: str = "") -> str:
    if not shutil.which("nft"):
        raise FirewallError("The nft command is missing.", "apt-get install nftables")
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"nft failed: {error}", "nft list tables") from error
    said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), f"exit code {done.returncode}")
    if not done.returncode:
        return done.stdout
    if missing and missing in done.stderr:
        return ""
    if _DENIED in done.stderr:
        raise FirewallError("Only root can read and change the rules.", "sudo cc-ci firewall")
    raise FirewallError(
        f"nft rejected the rules: {said}", "uname -r; nft --version: cc-ci needs Linux 5.19 and nftables 1.0 or newer"
    )
