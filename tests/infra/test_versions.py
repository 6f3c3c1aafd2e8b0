"""The order of recipes' versions."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.recipe_version import Unreadable, Version

DATA = (Path(__file__).resolve().parents[1] / "data" / "versions.txt").read_text()
BLOCKS = [lines for block in DATA.split("\n\n") if (lines := [line for line in block.splitlines() if line[:1].isdigit()])]

numbers = st.integers(0, 12)
flavours = st.sampled_from(["", "-rc1", "-rc2", "-fpm-alpine", "-social-amd64", "b1", ".1", "-01", "-1", "_1"])
rights = st.one_of(
    st.builds("{}{}.{}{}".format, st.sampled_from(["", "v"]), numbers, numbers, flavours),
    st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z._+-]{0,12}\Z"),
    st.builds("RELEASE.2024-{}-{}".format, numbers, numbers),
)
versions = st.builds("{}.{}.{}+{}".format, numbers, numbers, st.integers(0, 1), rights).map(Version.parse)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0])
def test_the_known_orders(block: list[str]) -> None:
    shuffled = block[::-1]
    assert sorted(shuffled, key=Version.parse) == block
    assert all(Version.parse(lower) < Version.parse(higher) for lower, higher in itertools.combinations(block, 2))


def test_there_are_blocks_to_check() -> None:
    assert len(BLOCKS) == 6
    assert sum(map(len, BLOCKS)) == 20


def test_what_is_unreadable_by_the_list() -> None:
    listed = re.search(r"# unreadable on purpose.*: (.*)", DATA)
    assert listed
    for text in listed[1].split(" | "):
        with pytest.raises(Unreadable, match=r"X\.Y\.Z\+<app version>"):
            Version.parse(text)


@pytest.mark.parametrize(
    "text", ["", "1.0.0+", "01.0.0+1", "1.0.0+1 ", "1.0.0+1\n", "1.0.0+../x", "١.0.0+1", "1.0.0+" + "9" * 300]
)
def test_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        Version.parse(text)


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0.0+RELEASE.2024-09-13", "1.0.0+RELEASE.2024-10-02"),
        ("1.0.0+v2.9", "1.0.0+2.11"),
        ("1.0.0+2.0b2", "1.0.0+2.0"),
        ("1.0.0+2.0", "1.0.0+2.0-alpine"),
        ("1.0.0+2.0-beta.2", "1.0.0+2.0-beta.10"),
        ("1.0.0+2.0", "1.0.0+2.0.1-rc1"),
        ("9.0.0+1", "10.0.0+1"),
    ],
)
def test_the_right_part(lower: str, higher: str) -> None:
    assert Version.parse(lower) < Version.parse(higher)
    assert not Version.parse(higher) < Version.parse(lower)


def test_majors() -> None:
    assert Version.parse("10.7.1+26.6.2").recipe_major == 10
    assert Version.parse("10.7.1+26.6.2").app_major == 26
    assert Version.parse("1.0.0+v2.11").app_major == 2
    assert Version.parse("1.0.0+RELEASE.2024-09-13").app_major is None


@given(versions)
def test_a_version_reads_as_it_was_written(one: Version) -> None:
    assert Version.parse(str(one)) == one


@given(versions, versions, versions)
def test_the_order_is_total(one: Version, two: Version, three: Version) -> None:
    assert (one < two) + (two < one) + (one == two) == 1
    assert (one <= two) == (not two < one)
    lowest, middle, highest = sorted([one, two, three])
    assert lowest <= middle <= highest and lowest <= highest
    assert (str(one) == str(two)) == (one == two)
    if one.left != two.left:
        assert (one < two) == (one.left < two.left)
