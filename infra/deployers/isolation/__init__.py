"""Runs untrusted code: guarded children, the bubblewrap sandbox, cgroups, the system call filter.

`guest/` holds the programs that run inside. Knows no recipe and no Docker.
"""
