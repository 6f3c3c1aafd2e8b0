"""The registry of deferred tests: reads DEFERRED.md into rows, shows them, and closes entries with proof.

May touch enrollment, `runs.models`, git, and of `runs.harness` what reads files.
"""
