"""docs/callbacks.md: its example verifies what we sign, and it names every network that is refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Any

from rebase.schemas.callback_policy import parse_delays
from rebase.schemas.callbacks import CallbackEvent, DeliveryState
from rebase.settings import Settings
from rebase.store.signing_secrets import build_signature_headers, generate_secret
from service.callbacks.ssrf_guard import DENIED_NETWORKS

GLOBAL = IPv6Network("2000::/3")  # whatever lies outside is refused as a whole
PAGE = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text()


def _example() -> Callable[[str, dict[str, str], bytes], bool]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found: Callable[[str, dict[str, str], bytes], bool] = names["verified"]
    return found


def test_the_example_accepts_our_messages_and_nothing_else() -> None:
    verified, now, body = _example(), int(time.time()), b'{"type":"job.succeeded"}'
    old, new = generate_secret(), generate_secret()
    headers = build_signature_headers([new, old], "01a2", now, body)

    assert verified(old, headers, body)
    assert verified(new, headers, body)
    assert not verified(generate_secret(), headers, body)
    assert not verified(new, headers, body + b" ")
    assert not verified(new, {**headers, "webhook-id": "01a3"}, body)
    assert not verified(new, build_signature_headers([new], "01a2", now - 600, body), body)
    assert not verified(new, {**headers, "webhook-timestamp": "now"}, body)


def test_every_refused_network_is_named() -> None:
    table = PAGE[PAGE.index("| IPv4 | IPv6 |") : PAGE.index("`REBASE_CALLBACK_ALLOW` lists")]
    named = {ip_network(text) for text in re.findall(r"`([0-9a-f.:/]+)`", table)} - {GLOBAL}
    for text in DENIED_NETWORKS:
        network = ip_network(text)
        alike = [other for other in named if other.version == network.version]
        covered = any(network.subnet_of(other) for other in alike)  # type: ignore[arg-type]
        assert covered or (network.version == 6 and not network.overlaps(GLOBAL)), text
    for text in ("127.0.0.0/8", "10.0.0.0/8", "fc00::/7"):
        assert ip_network(text) in named


def test_the_page_tells_the_schedule_the_events_and_the_states_as_they_are() -> None:
    waits = parse_delays(Settings(_env_file=None).callback_waits_s)
    assert waits == (5, 30, 120, 600, 3600, 10800, 28800, 86400)
    assert "5 s, 30 s, 2 min, 10 min, 1 h, 3 h, 8 h and 24 h" in PAGE
    assert all(f"`{word.value}`" in PAGE for word in (*CallbackEvent, *DeliveryState))
