import time


def test_it(app):
    app.exec("touch /fall")
    time.sleep(4)
    assert app.get("/").status_code == 200
