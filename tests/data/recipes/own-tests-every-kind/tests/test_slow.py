import pytest

pytestmark = [pytest.mark.extra(covers=["compose.yml"], ports="matrix-synapse-purge")]


def test_slow():
    pass


if pytest:

    @pytest.mark.extra(covers=["./www/"])
    def test_slow_page():
        pass
