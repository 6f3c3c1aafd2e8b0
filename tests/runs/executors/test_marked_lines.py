"""What the harness says through a log, and what a recipe's test that prints to the same log can do about it: nothing."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs.executors import marked_lines as m
from runs.executors.marked_lines import LONGEST_LINE, Found, Writer, read

KEY, RUN = "0123456789abcdef" * 4, "0b0e9d9c-9f51-4a3c-8b7e-1f2d3c4b5a69"
RESULTS = '{"verdict": "passed", "reason": "' + "x" * 50 + '"}'
PICTURE = random.Random(1).randbytes(9000)


def report(key: str = KEY, run: str = RUN, attempt: int = 1, results: str = RESULTS) -> list[str]:
    writer = Writer(key, run, attempt)
    lines = writer.event('{"seq": 1}') + writer.event('{"seq": 2}')
    return [*lines, *writer.file("picture.png", PICTURE), *writer.results(results), *writer.end()]


def log(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def found(text: str, attempt: int = 1) -> Found:
    return read(text, KEY, RUN, attempt)


LINES = report()


def test_what_was_written_is_read_and_the_rest_is_text() -> None:
    text = "hello\n" + log(LINES[:3]) + "between\n" + log(LINES[3:]) + "bye\n"
    seen = found(text)
    assert seen.results == RESULTS
    assert seen.events == ['{"seq": 1}', '{"seq": 2}']
    assert seen.files == {"picture.png": PICTURE}
    assert seen.text == "hello\nbetween\nbye\n"
    assert not seen.problem


def test_every_line_is_short() -> None:
    assert len(LINES) > 7, "the picture takes several lines"
    assert max(map(len, LINES)) < LONGEST_LINE


def test_a_log_so_far_has_its_events_and_no_results() -> None:
    seen = found(log(LINES[:-1]))
    assert seen.events == ['{"seq": 1}', '{"seq": 2}']
    assert (seen.results, seen.files) == (None, {})
    assert "only a part" in seen.problem


def test_a_log_without_a_report_says_so() -> None:
    assert "no report" in found("hello\n").problem


@pytest.mark.parametrize("missing", range(len(LINES)))
def test_without_any_one_line_there_are_no_results(missing: int) -> None:
    seen = found(log(LINES[:missing] + LINES[missing + 1 :]))
    assert seen.results is None
    assert seen.problem


@pytest.mark.parametrize(
    "noise",
    [
        "no newline before it: ",
        "\x1b[31mred",
        "50 %\r",
        "\0\0",
        "\ud800",
        "x" * (1 << 20),
        "cc-ci:1:",
        f"cc-ci:1:{RUN}:1:1:results:",
        "cc-ci:1:" * 10_000,
        LINES[0][:-1],
        LINES[0][:-1] + ("1" if LINES[0][-1] == "0" else "0"),
        "\u2028",
        LINES[0][: LINES[0].rindex(":")] + ":" + "c" * 63,
    ],
    ids=lambda noise: ascii(noise[:20]),
)
def test_text_around_a_line_neither_hides_nor_changes_it(noise: str) -> None:
    started = time.process_time()
    seen = found(noise.join(f"{line}\n" for line in ["", *LINES]))
    assert seen.results == RESULTS
    assert noise.splitlines()[0] in seen.text
    assert time.process_time() - started < 3


@pytest.mark.parametrize("cut", ["\n", "\r", "\x1b[0m", "…", " "])
def test_what_breaks_into_a_line_makes_it_text_and_the_report_incomplete(cut: str) -> None:
    middle = len(LINES[-2]) // 2
    broken = LINES[-2][:middle] + cut + LINES[-2][middle:]
    seen = found(log([*LINES[:-2], broken, LINES[-1]]))
    assert seen.results is None
    assert LINES[-2][:middle] in seen.text


@pytest.mark.parametrize(
    "forged",
    [
        report(key="f" * 64),
        report(run="11111111-9f51-4a3c-8b7e-1f2d3c4b5a69"),
        report(attempt=2),
        report(key="f" * 64, results='{"verdict": "failed"}'),
        [line.replace(":results:", ":event:") for line in LINES],
        [line.replace(f"{RUN}:1:", f"{RUN}:2:") for line in report(attempt=1)],
    ],
)
def test_lines_of_others_are_text(forged: list[str]) -> None:
    for text in (log(forged + LINES), log(LINES + forged)):
        seen = found(text)
        assert seen.results == RESULTS
        if forged[-1] not in LINES:
            assert forged[-1] in seen.text
    assert found(log(LINES), attempt=2).results is None, "a report of the first attempt says nothing about the second"


def test_an_earlier_attempts_report_is_no_report_of_this_one() -> None:
    seen = read(log(report(key="1" * 64, attempt=1)), KEY, RUN, 2)
    assert (seen.results, seen.events) == (None, [])


def test_order_and_repetition_do_not_matter() -> None:
    shuffled = LINES * 2
    random.Random(3).shuffle(shuffled)
    assert found(log(shuffled)).results == RESULTS
    assert found(log(shuffled)).text == ""


def test_two_reports_of_one_attempt_are_none() -> None:
    seen = found(log(LINES + report(results='{"verdict": "failed"}')))
    assert seen.results is None
    assert "two different" in seen.problem


def test_a_second_end_does_not_shorten_a_report() -> None:
    writer = Writer(KEY, RUN, 1)
    lines = [*writer.results("{}"), *writer.end(), *writer.event("{}")]
    assert found(log(lines)).results is None


def test_what_is_too_long_for_the_budget_takes_no_number() -> None:
    writer = Writer(KEY, RUN, 1)
    assert writer.file("big", PICTURE, most=5000) == []
    assert found(log([*writer.results("{}"), *writer.end()])).results == "{}"


edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "cut", "repeat", "swap", "flip"]),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        st.one_of(st.text(max_size=40), st.sampled_from([*LINES, *report(key="f" * 64), *report(key="1" * 64, attempt=2), "\n"])),
    ),
    max_size=6,
)


@settings(max_examples=400)
@given(edits, st.booleans())
def test_whatever_is_done_to_a_log_it_has_the_true_results_or_none(edits: list[tuple[str, int, int, str]], by_line: bool) -> None:
    text: list[str] = [f"{line}\n" for line in ["hello", *LINES, "bye"]]
    if not by_line:
        text = list("".join(text))
    for what, first, second, piece in edits:
        one, two = sorted((first % (len(text) + 1), second % (len(text) + 1)))
        if what == "insert":
            text[one:one] = [piece]
        elif what == "cut":
            del text[one:two]
        elif what == "repeat":
            text[two:two] = text[one:two]
        elif text and what == "swap":
            one, two = one % len(text), two % len(text)
            text[one], text[two] = text[two], text[one]
        elif text:
            text[one % len(text)] = piece[:1] or "\n"
    seen = found("".join(text))
    assert seen.results in (RESULTS, None)
    assert set(seen.events) <= {'{"seq": 1}', '{"seq": 2}'}
    assert seen.files in ({}, {"picture.png": PICTURE})
    assert bool(seen.problem) == (seen.results is None)


@settings(max_examples=200)
@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    seen = found(text)
    assert (seen.text, seen.results) == (text, None)


@pytest.mark.parametrize("kind", [m.EVENT, m.FILE])
def test_a_log_unpacks_to_no_more_than_its_total(kind: str) -> None:
    writer = Writer(KEY, RUN, 1)
    lines = [line for _ in range(8) for line in writer._block(kind, bytes((15 << 20) + 5))]
    tracemalloc.start()
    seen = found(log(lines + writer.results("{}") + writer.end()))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.problem and not seen.files
    assert most < 3 * m.LONGEST_LOG


def test_files_are_unpacked_once_the_end_is_there() -> None:
    lines = Writer(KEY, RUN, 1)._block(m.FILE, bytes(15 << 20))
    tracemalloc.start()
    assert "only a part" in found(log(list(lines))).problem
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20
