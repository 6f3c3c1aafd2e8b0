"""The rules in nftables syntax. Pure.

All of them are in one table of our own, which dockerd, iptables and firewalld leave alone. A base chain's `accept` only ends that
chain, so what Docker's own rules forbid stays forbidden; a `reject` is final. The chains run before Docker's (priority -5).

The sender is identified by the bridge a packet comes in by, which a container cannot choose; its source address only has to
belong to that bridge. Otherwise replies could be forged: a container would send a packet with another's source address to its
own server on the internet, and "answer" in that server's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infra.deployers.docker.egress import GATEWAY, NOTHING, PREFIX, PRIVATE_4, PRIVATE_6, Allowed, group

TABLE = "cc_ci"
REFUSING, COUNTING = "refusing", "counting only"
#: Comments on the rules with counters. Shown to people, and the same in all versions of the rules.
TO_HOST, TO_PRIVATE, FORGED = "to this machine", "to a private or link-local range", "with a forged source address"
TOO_MANY = "beyond the connections that a run may have"
#: Simultaneous connections per bridge. The kernel's connection table is shared: when it is full, nobody gets a new one.
CONNECTIONS = 4096


@dataclass(frozen=True)
class Rules:
    """The requested rules. Equal ones render to equal text."""

    allowed: Sequence[tuple[Allowed, str]] = ()  #: to all runs, with the reason
    recipes: Sequence[Sequence[Allowed]] = field(default_factory=tuple)  #: what an enrolment allows to its recipe's runs
    everything: bool = False  #: whether all that leaves by docker_gwbridge is held like a run
    counting: bool = False  #: refuse nothing, and count what would be refused

    def text(self) -> str:
        """Input for `nft --file`: replaces the table atomically, whether or not it exists."""
        return f"table inet {TABLE}\ndelete table inet {TABLE}\n{self.table()}"

    def table(self) -> str:
        return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        gateway = f'iifname "{GATEWAY}"'
        run = f'iifname "{PREFIX}*"'
        yield f"table inet {TABLE} {{"
        yield f'\tcomment "cc-ci firewall, {COUNTING if self.counting else REFUSING}"'
        for version, networks in ((4, PRIVATE_4), (6, PRIVATE_6)):
            kind = f"ipv{version}_addr"
            yield f"\tset private{version} {{ type {kind}; flags interval; auto-merge; elements = {{ {', '.join(networks)} }}; }}"
        yield "\tset connections { type ifname; size 4096; flags dynamic; }"
        for hook, chain in (("input", "to_host"), ("forward", "onward")):
            yield f"\tchain {hook} {{"
            yield f"\t\ttype filter hook {hook} priority filter - 5; policy accept;"
            yield f"\t\t{run} jump {chain}"
            # A run's container could make the server's proxy, which is on its network, forward forged packets.
            yield f"\t\t{gateway} jump {chain if self.everything else 'forged'}"
            yield "\t}"
        yield "\tchain to_host {"
        yield "\t\tjump forged"
        yield "\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
        yield "\t\tct direction reply accept"
        yield "\t\tjump allowed"
        yield from self._refuse("", TO_HOST)
        yield "\t}"
        yield "\tchain onward {"
        yield "\t\tjump forged"
        yield "\t\tct direction reply accept"
        count = f"ct state new add @connections {{ iifname ct count over {CONNECTIONS} }} "
        yield from self._refuse(count, TOO_MANY, "drop")
        yield f'\t\t{run} fib daddr . iif oif exists accept comment "to the run itself"'
        yield "\t\tjump allowed"
        yield from self._refuse("ip daddr @private4 ", TO_PRIVATE)
        yield from self._refuse("ip6 daddr @private6 ", TO_PRIVATE)
        yield "\t}"
        yield "\tchain forged {"
        yield "\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return"
        yield from self._refuse("fib saddr . iif oif missing ", FORGED, "drop")
        yield "\t}"
        yield "\tchain allowed {"
        for entry, why in self.allowed:
            yield f'\t\t{_matches(entry)} accept comment "{why}"'
        groups = {group(entries): sorted(entries) for entries in self.recipes if entries}
        for digits, entries in sorted(groups.items()):
            assert digits != NOTHING
            for entry in entries:
                yield f'\t\tiifname "{PREFIX}{digits}*" {_matches(entry)} accept comment "by an enrolment"'
        yield "\t}"
        yield "}"

    def _refuse(self, condition: str, comment: str, verdict: str = "reject with icmpx admin-prohibited") -> Iterator[str]:
        if self.counting:
            yield f'\t\t{condition}limit rate 10/minute log prefix "cc-ci would refuse: "'
        yield f'\t\t{condition}counter {"" if self.counting else f"{verdict} "}comment "{comment}"'


def _matches(entry: Allowed) -> str:
    """Match the original destination, before Docker (or anything else) forwards a published port to a container."""
    network = ipaddress.ip_network(entry.network)
    address = str(network.network_address) if network.num_addresses == 1 else entry.network
    where = f"ct original {'ip' if network.version == 4 else 'ip6'} daddr {address}"
    return f"{where} meta l4proto {entry.protocol} ct original proto-dst {entry.port}" if entry.port else where
