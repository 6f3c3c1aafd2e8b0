"""The word mark.extra in a text marks nothing."""


def test_mail():
    pass
