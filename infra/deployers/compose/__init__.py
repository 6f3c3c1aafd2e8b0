"""A recipe's files: its environment, the document that Docker renders, what of that is allowed, and what is deployed.

Nothing here touches the Swarm. The only program it runs is Docker's own reader, in a sandbox (`render`).
"""
