"""Docker on this host: the command, the API, images, volumes, files in containers, and which object belongs to whom.

Knows no recipe. May touch `context`, `isolation`, `errors` and `probe`.
"""
