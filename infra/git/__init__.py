"""Git: one runner, its environment, bare mirrors, and retries against a forge.

Knows nothing but the deployers' way to start a process.
"""
