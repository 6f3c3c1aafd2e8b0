def test_the_page_is_there(app):
    assert "Whole" in app.get("/").text
