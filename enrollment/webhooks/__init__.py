"""Webhooks: receiving deliveries, and registering and repairing the hooks that send them.

May touch models, forges, forge_access, repositories and comments; knows nothing of polling.
"""
