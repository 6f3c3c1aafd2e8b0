import pytest
from helper import PURGED


@pytest.mark.extra(covers=["abra.sh"])
def test_purge():
    assert PURGED
