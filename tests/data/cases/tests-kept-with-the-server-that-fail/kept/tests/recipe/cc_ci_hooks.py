def before_upgrade(app):
    assert app.exec("echo kept > /data/kept").code == 0
