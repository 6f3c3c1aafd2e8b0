def write_marker(app, value):
    assert app.exec(f"echo {value} > /var/lib/db/rows", service="db").code == 0


def read_marker(app):
    return app.exec("cat /var/lib/db/rows", service="db").output.strip()
