"""Releases of the apps' recipes: discovery, and the gate that decides which one an app may be upgraded to.

May touch config, git, models and lifecycle.
"""
