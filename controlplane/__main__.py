"""`python -m controlplane …` is `cc-ci …`, for processes that start one."""

from controlplane.cli import main

main()
