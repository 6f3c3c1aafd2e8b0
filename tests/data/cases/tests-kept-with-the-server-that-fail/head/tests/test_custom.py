def test_own(app):
    assert app.exec("true").code == 0
