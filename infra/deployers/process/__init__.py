"""The deployer for machines without Docker: a recipe's services as processes in one sandbox.

May touch `base`, `compose` and `isolation`.
"""
