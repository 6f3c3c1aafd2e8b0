def before_install(app):
    app.exec("kill $(pidof httpd)")
