"""No address that is not somebody's public machine is let through, in whatever form it is written."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.schemas.callback_policy import Allowlist
from service.callbacks.ssrf_guard import DENIED_NETWORKS, blocked_reason, find_embedded_ipv4

NOTHING = Allowlist()
FOUR = st.ip_addresses(v=4)
SIX = st.ip_addresses(v=6)
REFUSED_FOUR = FOUR.filter(lambda address: blocked_reason(address, NOTHING) is not None)
PUBLIC_FOUR = FOUR.filter(lambda address: blocked_reason(address, NOTHING) is None)


def carriers(four: IPv4Address) -> list[IPv6Address]:
    """Every IPv6 form that carries this IPv4 address."""
    bits = int(four)
    return [
        IPv6Address(f"::ffff:{four}"),
        IPv6Address(f"::ffff:0:{four}"),
        IPv6Address(f"::{four}"),
        IPv6Address(f"64:ff9b::{four}"),
        IPv6Address(f"64:ff9b:1:abcd::{four}"),
        IPv6Address((0x2002 << 112) | (bits << 80) | 1),
        IPv6Address((0x2001_0000 << 96) | (bits << 64) | 0xFFFF_FFFF),
        IPv6Address((0x2001_0000 << 96) | (int(IPv4Address("8.8.8.8")) << 64) | (bits ^ 0xFFFF_FFFF)),
        IPv6Address((0x2A00_1450 << 96) | (0x0000_5EFE << 32) | bits),
        IPv6Address((0x2A00_1450 << 96) | (0x0200_5EFE << 32) | bits),
    ]


@pytest.mark.parametrize("network", DENIED_NETWORKS)
def test_each_network_of_the_list_is_refused_from_its_first_to_its_last_address(network: str) -> None:
    found = ip_network(network)

    assert blocked_reason(found[0], NOTHING)
    assert blocked_reason(found[-1], NOTHING)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.100.100.200",
        "168.63.129.16", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::", "::ffff:10.0.0.1",
        "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "ff02::1", "2001:db8::1", "4000::1",
    ],
)  # fmt: skip
def test_addresses_of_our_own_side_are_refused(address: str) -> None:
    assert blocked_reason(ip_address(address), NOTHING)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_are_let_through(address: str) -> None:
    assert blocked_reason(ip_address(address), NOTHING) is None


@given(st.one_of(FOUR, SIX))
def test_whatever_the_standard_library_calls_not_global_is_refused(
    address: IPv4Address | IPv6Address,
) -> None:
    if not address.is_global or address.is_multicast:
        assert blocked_reason(address, NOTHING)


@given(REFUSED_FOUR)
def test_an_ipv4_address_that_is_refused_is_refused_inside_every_ipv6_form(four: IPv4Address) -> None:
    for six in carriers(four):
        assert four in find_embedded_ipv4(six) or int(six) <= 1  # `::` and `::1` are themselves
        assert blocked_reason(six, NOTHING), six


@given(PUBLIC_FOUR, st.sampled_from([IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16")]))
def test_allowing_a_translator_does_not_allow_what_it_translates_to(
    public: IPv4Address, translator: IPv6Network
) -> None:
    allowed = Allowlist(networks=(translator,))
    for four, passes in ((public, True), (IPv4Address("10.0.0.5"), False), (IPv4Address("127.0.0.1"), False)):
        for six in carriers(four):
            if six in translator:
                assert (blocked_reason(six, allowed) is None) is passes


@given(FOUR)
def test_a_listed_network_is_allowed_and_nothing_beside_it(address: IPv4Address) -> None:
    allowed = Allowlist.parse("127.0.0.0/8")
    if address in IPv4Network("127.0.0.0/8"):
        assert blocked_reason(address, allowed) is None
    else:
        assert blocked_reason(address, allowed) == blocked_reason(address, NOTHING)


def test_what_an_operator_lists_is_read_as_names_addresses_and_networks() -> None:
    allowed = Allowlist.parse("127.0.0.1, Hooks.Internal , 10.2.0.0/16,::1, receiver")

    assert allowed.names == {"hooks.internal", "receiver"}
    assert [str(network) for network in allowed.networks] == ["127.0.0.1/32", "10.2.0.0/16", "::1/128"]
    assert Allowlist.parse("") == NOTHING


@pytest.mark.parametrize(
    "entry", ["10.0.0.1/8", "300.1.1.1", "http://a.example", "a b", "10.0.0.0/33", "*.a.example"]
)
def test_what_cannot_be_read_as_one_of_these_is_an_error_and_not_a_name(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host name, address or network"):
        Allowlist.parse(f"127.0.0.1,{entry}")
