import pytest


def test_installed():
    pass


@pytest.mark.extra(covers=["compose.yml"])
def test_installed_long():
    pass
