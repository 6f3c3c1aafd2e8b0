def test_answers_under_its_own_name(app):
    assert app.url == f"http://{app.domain}"
    assert app.get().ok
