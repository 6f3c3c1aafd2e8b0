"""Upgrading an app: who may start it, when it is due, and its steps, run by a process that holds a lease.

May touch everything in infra but `web`.
"""
