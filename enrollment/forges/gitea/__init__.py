"""Gitea and Forgejo: the API client, a server's capabilities, webhook deliveries, all bound together in `kind`.

Depends only on `enrollment.forges.base` and `enrollment.forges.http`.
"""
