def test_the_operators_colour_is_the_default(app):
    assert app.exec("echo $COLOUR").output.strip() == "blue"
    assert len(app.exec("cat /run/secrets/salt").output.strip()) == 20
