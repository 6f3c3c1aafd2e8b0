"""Seeds the app before its stages, and knows where a marker lives in it."""

from seeds import GREETING


def before_install(app):
    assert app.get("/").ok


def before_custom(app, value):
    app.exec(["sh", "-c", "echo " + GREETING + " " + value + " > www/seed.html"])


def write_marker(app, value):
    done = app.exec(["sh", "-c", 'echo "$1" > www/marker.html', "sh", value])
    assert done.code == 0, done.output


def read_marker(app):
    return app.get("/marker.html").text.strip()


def helper(app):
    raise AssertionError("nobody calls this")
