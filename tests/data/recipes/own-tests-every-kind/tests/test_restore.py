def test_restored():
    pass
