"""Deployers, which put a recipe on a machine, and the sandbox for a recipe's code. Knows no Django."""
