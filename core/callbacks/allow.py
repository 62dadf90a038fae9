"""What an operator allows beside the public internet: `REBASE_CALLBACK_ALLOW`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Host names and networks. A listed name is trusted with whatever it resolves to."""

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowlist:
        """Names, addresses and networks, separated by commas. Raises ValueError for what is none of these."""
        names: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ip_network(entry))
            except ValueError:
                # A last label of digits can be no name, so it is a network that was mistyped.
                if not _HOST_NAME.fullmatch(entry) or entry.rsplit(".", 1)[-1].isdecimal():
                    raise ValueError(f"'{entry}' is no host name, address or network") from None
                names.add(entry)
        return cls(frozenset(names), tuple(networks))

    def allows_host(self, host: str) -> bool:
        """Is this very name listed?"""
        return host in self.names

    def allows_address(self, address: IPv4Address | IPv6Address) -> bool:
        """Does it lie in a listed network?"""
        return any(address in network for network in self.networks)
