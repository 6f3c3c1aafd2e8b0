def test_it(app):
    assert app.get("/").status_code == 200
