def test_custom():
    pass
