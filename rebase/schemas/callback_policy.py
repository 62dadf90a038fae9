"""Callback settings: the allowlist `REBASE_CALLBACK_ALLOW` and the retry schedule."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Host names and networks beyond the public internet. Whatever a listed name resolves to is trusted."""

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowlist:
        """Parse comma-separated names, addresses and networks. Raises ValueError for anything else."""
        names: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ip_network(entry))
            except ValueError:
                # A name cannot end in an all-digit label, so this is a mistyped network.
                if not _HOST_NAME.fullmatch(entry) or entry.rsplit(".", 1)[-1].isdecimal():
                    raise ValueError(f"'{entry}' is not a host name, address or network") from None
                names.add(entry)
        return cls(frozenset(names), tuple(networks))

    def allows_host(self, host: str) -> bool:
        """Whether exactly this name is listed."""
        return host in self.names

    def allows_address(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether the address is in a listed network."""
        return any(address in network for network in self.networks)


# When a failed delivery is retried, and when it is given up.

# 5 s, 30 s, 2 min, 10 min, 1 h, 3 h, 8 h, 24 h: tolerates a restart as well as an outage overnight.
DEFAULT_DELAYS = "5,30,120,600,3600,10800,28800,86400"
JITTER = 0.2  # up to a fifth more, so that simultaneous failures are not retried simultaneously
MAX_RETRY_AFTER_S = 86400.0  # of a receiver's Retry-After
_MAX_DELAYS = 30
_MAX_DELAY_S = 30 * 86400.0


def parse_delays(text: str) -> tuple[float, ...]:
    """Comma-separated seconds. Raises ValueError; an empty text means no retries."""
    delays = tuple(float(part) for part in text.split(",") if part.strip())
    if len(delays) > _MAX_DELAYS or not all(0 <= delay <= _MAX_DELAY_S for delay in delays):
        raise ValueError(f"must be at most {_MAX_DELAYS} delays of 0 to {_MAX_DELAY_S:.0f} seconds")
    return delays


def compute_next_delay(
    delays: tuple[float, ...], failures: int, seed: str, retry_after_s: float | None
) -> float | None:
    """The delay after the `failures`-th failure (counting from 1); None: give up.

    The jitter is derived from the seed (the delivery's id), so schedules are reproducible. A Retry-After
    header can lengthen the delay, up to a day, but not shorten it.
    """
    if failures > len(delays):
        return None
    digest = hashlib.sha256(f"{seed}/{failures}".encode()).digest()
    fraction = int.from_bytes(digest[:8]) / 2**64
    delay = delays[failures - 1] * (1 + JITTER * fraction)
    return max(delay, min(retry_after_s, MAX_RETRY_AFTER_S)) if retry_after_s is not None else delay
