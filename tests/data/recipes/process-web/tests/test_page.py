"""The page of the app, asked as a browser would."""


def test_the_page_says_hello(app):
    answer = app.get("/")
    assert answer.status_code == 200
    assert "Hello" in answer.text


def test_a_page_that_is_not_there(app):
    assert app.get("/nowhere").status_code == 404


def test_the_app_has_its_page(app):
    done = app.exec("cat www/index.html || cat /www/index.html")
    assert done.code == 0
    assert "Hello" in done.output
