def test_it_speaks_matrix(app):
    assert "v1.11" in app.get("/_matrix/client/versions").json()["versions"]
