import time


def test_it(app):
    assert app.exec(["touch", "/fall"]).code == 0
    while app.services()["app"].running:
        time.sleep(0.1)
