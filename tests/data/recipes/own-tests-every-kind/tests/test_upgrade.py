def test_upgraded():
    pass
