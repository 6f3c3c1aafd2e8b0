def test_kept(app):
    assert app.exec("cat /data/kept").output.strip() == "kept"
