"""How we talk to a forge: the client for its row, the rate limit, what our token may do, what the server can do.

May touch `enrollment.models` and `enrollment.forges`.
"""
