import time


def test_it(app):
    assert app.get("/").status_code == 200
    app.exec(["touch", "/fall"])
    time.sleep(3)
