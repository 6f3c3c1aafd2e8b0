#!/usr/bin/env python
"""Django's command line; the same commands are there as `cc-ci …` once installed."""

from controlplane.cli import main

if __name__ == "__main__":
    main()
