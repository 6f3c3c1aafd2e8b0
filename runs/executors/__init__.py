"""One file per place where a run can happen; `base.py` says what an executor does."""
