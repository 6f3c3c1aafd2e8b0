import time


def test_it(app):
    time.sleep(10)
