def test_the_label_is_the_commits(app):
    assert app.version.partition("+")[0] in app.get("/").text
