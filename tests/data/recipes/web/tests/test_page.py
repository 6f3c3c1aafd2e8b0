def test_the_page_says_hello(app):
    answer = app.get("/")
    assert answer.status_code == 200
    assert "Hello from the web recipe" in answer.text


def test_what_is_inside_the_container(app):
    assert len(app.exec(["cat", "/run/secrets/session_key"]).output.strip()) == 48
    assert app.exec("echo $GREETING").output.strip() == f"hello {app.domain}"
    assert app.exec("echo $PRICE").output.strip() == "5$"


def test_a_command_that_fails_says_so(app):
    assert app.exec(["false"]).code == 1
