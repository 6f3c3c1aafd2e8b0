def test_the_seed_is_there(app, marker):
    assert app.get("/seed.html").text.strip() == f"seeded {marker.value}"


def test_what_runs(app):
    service = app.services()["app"]
    assert (service.wanted, service.running, service.health) == (1, 1, "")
    assert app.version == "1.2.0+1.36.1"
    assert app.ports == {}
