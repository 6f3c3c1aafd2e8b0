"""Reading the forges: one poll of each forge, how often, and whose clock counts.

May touch models, forges, forge_access, repositories, comments and webhooks (which repositories a hook covers).
"""
