def write_marker(app, value):
    assert app.exec(["sh", "-c", "echo $1 > /db/rows", "sh", value], service="db").code == 0


def read_marker(app):
    return app.exec("cat /db/rows", service="db").output.strip()
