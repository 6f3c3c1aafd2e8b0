def test_kept(app):
    assert app.exec("echo $BOTH").output.strip() == "yes"
