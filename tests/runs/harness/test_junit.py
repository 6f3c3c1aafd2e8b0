"""JUnit XML from the sandbox, and what it says together with pytest's exit code."""

from __future__ import annotations

import pytest

from runs.harness import junit
from runs.harness.recipe_tests import judge


def xml(*cases: str) -> bytes:
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>".encode()


GOOD = '<testcase name="good" file="tests/test_a.py" time="0.25"/>'
BAD = '<testcase name="bad" time="1"><failure message="assert 0">trace\nlast</failure><system-out>said</system-out></testcase>'
ERROR = '<testcase name="broken"><error message="no"/></testcase>'
SKIPPED = '<testcase name="later"><skipped message="not yet"/></testcase>'


def test_cases_with_status_words_and_last_lines() -> None:
    good, bad, error, skipped = junit.parse(xml(GOOD, BAD, ERROR, SKIPPED))
    assert (good.name, good.file, good.status, good.seconds) == ("good", "tests/test_a.py", "passed", 0.25)
    assert (bad.status, bad.message, bad.output) == ("failed", "assert 0", "trace\nlast\nsaid")
    assert (error.status, skipped.status, skipped.message) == ("errored", "skipped", "not yet")


@pytest.mark.parametrize(
    "data",
    [
        b"not xml",
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><testsuites>&b;</testsuites>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><testsuites/>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x><testsuites/>'.encode("utf-16"),
        b"<testsuites>" + b"x" * (junit.BIGGEST + 1),
        xml(GOOD * (junit.MOST_CASES + 1)),
    ],
)
def test_what_is_no_honest_junit_is_refused(data: bytes) -> None:
    with pytest.raises(junit.BadJUnit):
        junit.parse(data)


def test_numbers_that_are_none_and_endless_texts() -> None:
    [case] = junit.parse(
        xml(f'<testcase name="{"n" * 1000}" time="nan"><failure message="{"m" * 9000}">{"o" * 99999}</failure></testcase>')
    )
    assert case.seconds == 0
    assert (len(case.name), len(case.message), len(case.output)) == (300, 2000, 8000)
    assert junit.parse(xml('<testcase name="x" time="-5"/>'))[0].seconds == 0


@pytest.mark.parametrize(
    ("code", "data", "status", "words"),
    [
        (0, xml(GOOD), "passed", ""),
        (1, xml(GOOD, BAD), "failed", "1 of 2 tests failed: bad."),
        (0, xml(GOOD, BAD), "failed", "1 of 2"),  # a forged exit code
        (1, xml(GOOD), "failed", "its results name no failed test"),  # forged results
        (0, b"", "failed", "without writing its results"),
        (0, xml(), "failed", "without writing its results"),
        (0, xml(SKIPPED), "not_applicable", "skipped"),
        (2, xml(ERROR), "failed", "could not be collected"),
        (3, b"", "failed", "pytest itself failed"),
        (4, b"", "failed", "could not load"),
        (5, xml(), "not_applicable", "no tests"),
        (5, b"", "not_applicable", "no tests"),
        (5, xml(GOOD), "failed", "exited with code 5"),
        (137, b"", "failed", "signal 9"),
        (-9, b"", "failed", "signal 9"),
        (0, b"<!DOCTYPE x><x/>", "failed", "invalid results"),
    ],
)
def test_passed_needs_exit_code_and_results_to_agree(code: int, data: bytes, status: str, words: str) -> None:
    outcome = judge(code, data)
    assert outcome.status == status
    assert words in outcome.reason
    assert outcome.proven is (code != 5 or status != "not_applicable"), "files without a test are no tests"


def test_memory_is_named_before_all_else() -> None:
    assert "memory" in judge(137, b"", out_of_memory=True).reason
