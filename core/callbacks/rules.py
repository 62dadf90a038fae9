"""Where callbacks may go in this deployment. Asked at submission, and again before every attempt."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from core.callbacks.addresses import refusal
from core.callbacks.allow import Allowed
from core.callbacks.url import Receiver, parse
from core.errors import RequestInvalid

POINTER = "/callback/url"
_FIRST_FREE_PORT = 1024  # below it live mail, shells and other things that must not be talked to


def trusted(receiver: Receiver, allowed: Allowed) -> bool:
    """Did the operator list this name, or the network of this literal address?"""
    if receiver.address is None:
        return allowed.name(receiver.host)
    return refusal(receiver.address, allowed) is None and allowed.address(receiver.address)


def objection(receiver: Receiver, allowed: Allowed) -> str | None:
    """Why nothing may be sent there, from the URL alone; None: nothing is wrong with it."""
    if trusted(receiver, allowed):
        return None
    if receiver.address is not None:
        why = refusal(receiver.address, allowed)
        if why is not None:
            return f"Callbacks do not go there: {why}."
    elif "." not in receiver.host or receiver.host.endswith(".localhost"):
        return f"Callbacks go to public names, and '{receiver.host}' is not one."
    if receiver.scheme != "https":
        return "Callbacks are sent over https only."
    if receiver.port != 443 and receiver.port < _FIRST_FREE_PORT:
        return f"Callbacks go to port 443, or to one from {_FIRST_FREE_PORT} on."
    return None


def refused_address(receiver: Receiver, addresses: Sequence[str], allowed: Allowed) -> str | None:
    """Why one of the addresses that a name resolved to may not be reached; one is enough to refuse all."""
    if trusted(receiver, allowed):
        return None
    return next(filter(None, (refusal(ip_address(one), allowed) for one in addresses)), None)


def check_callback_url(url: str, allowed: Allowed) -> None:
    """Raises RequestInvalid, pointing at the field, for a URL that this deployment sends nothing to."""
    try:
        why = objection(parse(url), allowed)
    except ValueError as exc:
        why = f"The URL {exc}."
    if why is not None:
        raise RequestInvalid(
            why,
            hint="An operator can allow further hosts and networks with REBASE_CALLBACK_ALLOW.",
            pointer=POINTER,
        )
