"""What the containers of runs may reach: rules of the packet filter on the bridges by which they leave, in a table of our own.

`rules` makes them (pure), `nft` loads and reads them, `wanted` knows which ones this server should have, `probe` tries from a
container what is reached, `check` is doctor's line. Knows the deployers, and of the rest of cc-ci only settings and registry.
"""
