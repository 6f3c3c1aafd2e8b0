import time


def before_custom(app):
    app.exec("touch /data/bad")
    time.sleep(2)
