"""Recipes as stacks on the Swarm: for one run (ephemeral) or for good (persistent), and when they have converged.

May touch `base`, `docker`, `compose`, `isolation`, `messages` and `readiness`.
"""
