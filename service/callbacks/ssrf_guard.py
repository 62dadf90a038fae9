"""The SSRF guard: which addresses, ports and URLs callbacks may reach.

Clients choose the receiver of a callback, and the sender is inside our network. So every address that is not
plainly public is blocked by an explicit deny list, unless the operator allows it. So is every IPv6 form with
an embedded IPv4 address that is blocked, because packets may end up there. Of IPv6 only global unicast
(2000::/3) is allowed at all, because nothing else is routed.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from rebase.errors import RequestInvalid
from rebase.schemas.callback_policy import Allowlist
from rebase.schemas.callbacks import Endpoint, parse_callback_url

Address = IPv4Address | IPv6Address

# From the IANA special-purpose registries, plus one cloud's metadata address outside of them.
DENIED_NETWORKS: dict[str, str] = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT (CGNAT)",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "internal services of a cloud provider",
    "169.254.0.0/16": "link-local, used by cloud metadata services",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT relays",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, and broadcast",
    "::/128": "unspecified",
    "::1/128": "loopback",
    "::/96": "IPv4-compatible",
    "::ffff:0:0/96": "IPv4-mapped",
    "::ffff:0:0:0/96": "IPv4-translated",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "local NAT64",
    "100::/64": "discard",
    "100:0:0:1::/64": "dummy",
    "2001::/32": "Teredo",
    "2001::/23": "protocol assignments",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "AS112",
    "3fff::/20": "documentation",
    "5f00::/16": "segment routing",
    "fc00::/7": "private (unique local)",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_PARSED_NETWORKS = [(ip_network(network), why) for network, why in DENIED_NETWORKS.items()]
_DENIED_IPV4 = [(network, why) for network, why in _PARSED_NETWORKS if isinstance(network, IPv4Network)]
_DENIED_IPV6 = [(network, why) for network, why in _PARSED_NETWORKS if isinstance(network, IPv6Network)]
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# Where an IPv4 address is embedded in the 128 bits: (prefix, bits to the right of it, inverted?).
_IPV4_EMBEDDINGS = (
    (IPv6Network("::/96"), 0, False),
    (IPv6Network("::ffff:0:0/96"), 0, False),
    (IPv6Network("::ffff:0:0:0/96"), 0, False),
    (IPv6Network("64:ff9b::/96"), 0, False),
    (IPv6Network("64:ff9b:1::/48"), 0, False),
    (IPv6Network("2002::/16"), 80, False),
    (IPv6Network("2001::/32"), 64, False),  # Teredo: its server …
    (IPv6Network("2001::/32"), 0, True),  # … and its client, with inverted bits
)
_ISATAP_PREFIXES = (
    0x0000_5EFE,
    0x0200_5EFE,
)  # the third 32 bits of an interface identifier that embeds an IPv4 address


def find_embedded_ipv4(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses embedded in an IPv6 address, by any known scheme."""
    number = int(address)
    if isinstance(address, IPv4Address) or number <= 1:  # `::` and `::1` only look like embeddings
        return []
    addresses = [
        IPv4Address((number >> shift & 0xFFFF_FFFF) ^ (0xFFFF_FFFF if inverted else 0))
        for network, shift, inverted in _IPV4_EMBEDDINGS
        if address in network
    ]
    if number >> 32 & 0xFFFF_FFFF in _ISATAP_PREFIXES:
        addresses.append(IPv4Address(number & 0xFFFF_FFFF))
    return addresses


def blocked_reason(address: Address, allowlist: Allowlist) -> str | None:
    """Why this address is blocked; None: it is allowed. Embedded addresses must be allowed as well."""
    for candidate in (address, *find_embedded_ipv4(address)):
        reason = None if allowlist.allows_address(candidate) else _denied_reason(candidate)
        if reason is not None:
            return (
                f"{address} is {reason}"
                if candidate == address
                else f"{address} embeds {candidate}, which is {reason}"
            )
    return None


def _denied_reason(address: Address) -> str | None:
    if isinstance(address, IPv4Address):
        return next((why for network, why in _DENIED_IPV4 if address in network), None)
    if address.scope_id is not None:
        return "an address with a zone"
    why = next((why for network, why in _DENIED_IPV6 if address in network), None)
    return why or (None if address in _GLOBAL_UNICAST else "not global unicast")


# Where this deployment's callbacks may go, checked at submission and again before every attempt.

CALLBACK_URL_POINTER = "/callback/url"
_FIRST_UNPRIVILEGED_PORT = 1024  # lower ports belong to mail, shells and other services to stay away from


def is_trusted(endpoint: Endpoint, allowlist: Allowlist) -> bool:
    """Whether the operator allowed this name, or the network of this literal address."""
    if endpoint.address is None:
        return allowlist.allows_host(endpoint.host)
    return blocked_reason(endpoint.address, allowlist) is None and allowlist.allows_address(endpoint.address)


def endpoint_blocked_reason(endpoint: Endpoint, allowlist: Allowlist) -> str | None:
    """Why this URL is blocked, before any name look-up; None: it is not."""
    if is_trusted(endpoint, allowlist):
        return None
    if endpoint.address is not None:
        reason = blocked_reason(endpoint.address, allowlist)
        if reason is not None:
            return f"Callbacks may not reach this address: {reason}."
    elif "." not in endpoint.host or endpoint.host.endswith(".localhost"):
        return f"Callbacks are only sent to public names, and '{endpoint.host}' is not one."
    if endpoint.scheme != "https":
        return "Callbacks are only sent over https."
    if endpoint.port != 443 and endpoint.port < _FIRST_UNPRIVILEGED_PORT:
        return f"Callbacks are only sent to port 443 or ports from {_FIRST_UNPRIVILEGED_PORT} up."
    return None


def resolved_blocked_reason(endpoint: Endpoint, addresses: Sequence[str], allowlist: Allowlist) -> str | None:
    """Why one of a name's resolved addresses is blocked; a single one blocks the name."""
    if is_trusted(endpoint, allowlist):
        return None
    return next(filter(None, (blocked_reason(ip_address(address), allowlist) for address in addresses)), None)


def check_callback_url(url: str, allowlist: Allowlist) -> None:
    """Raises RequestInvalid, pointing at the field, for a URL that this deployment does not call."""
    try:
        reason = endpoint_blocked_reason(parse_callback_url(url), allowlist)
    except ValueError as exc:
        reason = f"The URL {exc}."
    if reason is not None:
        raise RequestInvalid(
            reason,
            hint="An operator can allow further hosts and networks with REBASE_CALLBACK_ALLOW.",
            pointer=CALLBACK_URL_POINTER,
        )
