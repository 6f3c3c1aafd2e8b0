import time


def test_it(app):
    for _ in range(2):
        app.exec("kill -9 $(pidof httpd)")
        until = time.time() + 60
        time.sleep(2)
        while app.services()["app"].running < 1 and time.time() < until:
            time.sleep(0.5)
        time.sleep(1)
        assert app.get("/").status_code == 200
