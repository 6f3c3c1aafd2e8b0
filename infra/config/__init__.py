"""infra.yml: its schema, loading and editing it, its differences from the server, and committing changes to it.

May touch git, models, lifecycle, `recipe_version` and `release_notes`; decides nothing about releases or upgrades.
"""
