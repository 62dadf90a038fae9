"""Where callbacks may go in this deployment. Asked at submission, and again before every attempt."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from core.callbacks.addresses import blocked_reason
from core.callbacks.allow import Allowlist
from core.callbacks.url import Endpoint, parse_callback_url
from core.errors import RequestInvalid

CALLBACK_URL_POINTER = "/callback/url"
_FIRST_UNPRIVILEGED_PORT = 1024  # below it live mail, shells and other things that must not be talked to


def is_trusted(endpoint: Endpoint, allowlist: Allowlist) -> bool:
    """Did the operator list this name, or the network of this literal address?"""
    if endpoint.address is None:
        return allowlist.allows_host(endpoint.host)
    return blocked_reason(endpoint.address, allowlist) is None and allowlist.allows_address(endpoint.address)


def endpoint_blocked_reason(endpoint: Endpoint, allowlist: Allowlist) -> str | None:
    """Why nothing may be sent there, from the URL alone; None: nothing is wrong with it."""
    if is_trusted(endpoint, allowlist):
        return None
    if endpoint.address is not None:
        reason = blocked_reason(endpoint.address, allowlist)
        if reason is not None:
            return f"Callbacks do not go there: {reason}."
    elif "." not in endpoint.host or endpoint.host.endswith(".localhost"):
        return f"Callbacks go to public names, and '{endpoint.host}' is not one."
    if endpoint.scheme != "https":
        return "Callbacks are sent over https only."
    if endpoint.port != 443 and endpoint.port < _FIRST_UNPRIVILEGED_PORT:
        return f"Callbacks go to port 443, or to one from {_FIRST_UNPRIVILEGED_PORT} on."
    return None


def resolved_blocked_reason(endpoint: Endpoint, addresses: Sequence[str], allowlist: Allowlist) -> str | None:
    """Why one of the addresses that a name resolved to may not be reached; one is enough to refuse all."""
    if is_trusted(endpoint, allowlist):
        return None
    return next(filter(None, (blocked_reason(ip_address(address), allowlist) for address in addresses)), None)


def check_callback_url(url: str, allowlist: Allowlist) -> None:
    """Raises RequestInvalid, pointing at the field, for a URL that this deployment sends nothing to."""
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
