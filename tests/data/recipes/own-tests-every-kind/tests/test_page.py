import unittest

import pytest
from pytest import mark

long = pytest.mark.extra(covers=("www/*.html", "abra.sh"))


def test_page():
    pass


@long
async def helper():
    """No test, whatever its mark."""


@long
def test_page_long():
    pass


@pytest.mark.parametrize("size", ["small", pytest.param("big", marks=[pytest.mark.extra(covers=["www"])])])
def test_size(size):
    pass


@mark.extra(covers=["abra.sh"])
class TestLoad:
    def test_many(self):
        pass

    @pytest.mark.extra
    def test_nearest_mark_counts(self):
        pass

    class TestInner:
        def test_inner(self):
            pass


class Cases(unittest.TestCase):
    def test_case(self):
        pass
