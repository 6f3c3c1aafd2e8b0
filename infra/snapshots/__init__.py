"""Snapshots of an app's volumes: their stores, their metadata, creating and restoring them.

May touch config, models and the deployers.
"""
