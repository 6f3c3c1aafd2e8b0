"""A recipe's files: its environment, what Docker makes of its compose files, what of that is admitted, and what is deployed.

Nothing here touches the Swarm. The only program that is run is Docker's own reader, in a sandbox (`render`).
"""
