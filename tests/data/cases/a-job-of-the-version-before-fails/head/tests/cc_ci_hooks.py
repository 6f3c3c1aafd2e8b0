import time


def before_upgrade(app):
    time.sleep(8)  # creates test data
