import pytest


def test_answers(app):
    assert app.get("/").status_code == 200


@pytest.mark.extra(covers=["hooks.sh"])
def test_a_long_look_at_the_hooks(app):
    assert app.exec("sh /hooks dump", service="db").code == 0
