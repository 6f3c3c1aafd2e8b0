import pytest

pytestmark = pytest.mark.extra(covers=["index.html"])


def test_many_requests(app):
    assert all(app.get("/").status_code == 200 for _ in range(20))
