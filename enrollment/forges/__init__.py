"""One file per kind of forge; `base.py` says what a forge can do."""
