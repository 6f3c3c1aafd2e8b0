"""Packet filter rules on the bridges that runs' containers leave by: what they may reach. Our own nftables table.

`rules` builds them (pure), `nft` loads and reads them, `desired` computes the ones this server should have, `probe` tests from a
container what is reachable, `check` is doctor's check. Knows the deployers; of the rest of cc-ci only settings and registry.
"""
