def test_answers_under_its_own_name(app):
    answer = app.get()
    assert answer.ok
    assert answer.request.headers["Host"] == app.domain
