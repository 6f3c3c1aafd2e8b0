"""One folder per kind of forge: `base.py` defines what a kind is, `kinds.py` lists them. Depends on nothing else of cc-ci."""
