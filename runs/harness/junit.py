"""JUnit XML to case results. A recipe's code can write the file, so its content is untrusted."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from runs.harness.protocol import CaseResult

BIGGEST = 8 << 20
MOST_CASES = 5000
_MESSAGE = 2000
_OUTPUT_LINES = 60
_OUTPUT = 8000

_STATUS = {"failure": "failed", "error": "errored", "skipped": "skipped"}


class BadJUnit(ValueError):
    """The file is not JUnit XML, or is malicious."""


def parse(data: bytes) -> list[CaseResult]:
    """The cases of a JUnit XML file, in order. Raises BadJUnit; never expands entities."""
    if len(data) > BIGGEST:
        raise BadJUnit(f"The results are larger than {BIGGEST >> 20} MB.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadJUnit("The results are not UTF-8.") from error
    # Without a document type there are no entities, so no bombs and no external files.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadJUnit("The results contain a DOCTYPE or entity declaration.")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - see above
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise BadJUnit(f"The results are not valid XML: {error}.") from error
    cases = list(root.iter("testcase"))
    if len(cases) > MOST_CASES:
        raise BadJUnit(f"The results have more than {MOST_CASES} cases.")
    return [_case(case) for case in cases]


def _case(element: ElementTree.Element) -> CaseResult:
    status, message, outputs = "passed", "", []
    for child in element:
        if child.tag in _STATUS and status in ("passed", "skipped"):
            status = _STATUS[child.tag]
            message = child.get("message", "")
            outputs.append(child.text or "")
        elif child.tag in ("system-out", "system-err"):
            outputs.append(child.text or "")
    return CaseResult.model_validate(
        {
            "name": _short(element.get("name", "?"), 300),
            "file": _short(element.get("file", ""), 300),
            "status": status,
            "seconds": _seconds(element.get("time", "0")),
            "message": _short(message, _MESSAGE),
            "output": _tail("\n".join(outputs)) if status != "passed" else "",
        }
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else 0.0


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_OUTPUT_LINES:])[-_OUTPUT:]
