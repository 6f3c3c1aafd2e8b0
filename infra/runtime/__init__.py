"""What runs on this host: inspection, health, and drift.

May touch config, releases, git, models, lifecycle, alerts and the deployers.
"""
