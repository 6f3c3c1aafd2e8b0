def test_backed_up_long():
    pass
