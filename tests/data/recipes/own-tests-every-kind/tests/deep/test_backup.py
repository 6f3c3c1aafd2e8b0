def test_backed_up():
    pass
