def test_by_its_name():
    pass
