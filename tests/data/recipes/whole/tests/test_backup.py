def test_the_dump_is_complete(app):
    assert "dump complete" in app.exec("cat /var/lib/db/dump.sql", service="db").output
