def test_the_rows_are_the_markers(app, marker):
    assert app.exec("cat /var/lib/db/rows", service="db").output.strip() == marker.value
