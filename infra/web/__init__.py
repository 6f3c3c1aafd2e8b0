"""The pages of the server's own apps, for staff, and the actions shared by pages, admin and commands.

May touch everything in infra.
"""
