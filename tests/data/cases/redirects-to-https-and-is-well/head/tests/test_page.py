import requests


def test_the_login_page_is_behind_two_redirections(app):
    answer = app.get("/")
    assert (answer.status_code, answer.url) == (200, f"https://{app.domain}/login")
    assert "Sign in" in answer.text


def test_the_app_is_told_that_https_was_asked(app):
    answer = app.get("/", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, f"https://{app.domain}/login")


def test_what_a_test_says_itself_counts(app):
    answer = app.get("/x", allow_redirects=False, headers={"X-Forwarded-Proto": "http"})
    assert (answer.status_code, answer.headers["Location"]) == (301, f"https://{app.domain}/x")


def test_another_client_finds_the_app_by_both(app):
    for scheme in ("https", "http"):
        assert "Sign in" in requests.get(f"{scheme}://{app.domain}/", timeout=10).text
