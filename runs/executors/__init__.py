"""One file per place where runs can happen; `base.py` defines an executor."""
