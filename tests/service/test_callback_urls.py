"""The URL of a callback: one strict reading, and what a deployment sends nothing to."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebase.errors import RequestInvalid
from rebase.schemas.callback_policy import Allowlist
from rebase.schemas.callbacks import CallbackSpec, parse_callback_url
from rebase.settings import Settings
from service.callbacks.ssrf_guard import check_callback_url, endpoint_blocked_reason, resolved_blocked_reason

PUBLIC = Allowlist()
TESTING = Allowlist.parse("127.0.0.0/8,::1,receiver")


def refused(url: str, allowed: Allowlist = PUBLIC) -> bool:
    try:
        return endpoint_blocked_reason(parse_callback_url(url), allowed) is not None
    except ValueError:
        return True


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.acme.example",
        "https://hooks.acme.example/rebase?team=a%20b&x=1",
        "https://HOOKS.acme.example.:8443/x",
        "https://8.8.8.8/x",
        "https://[2606:4700:4700::1111]/x",
        "https://bücher.example/x",
    ],
)
def test_public_https_is_fine(url: str) -> None:
    assert not refused(url)


@pytest.mark.parametrize(
    ("url", "host", "authority", "target"),
    [
        ("https://Hooks.Acme.EXAMPLE.", "hooks.acme.example", "hooks.acme.example", "/"),
        ("https://a.example:443/x?y", "a.example", "a.example", "/x?y"),
        ("https://a.example:8443?y", "a.example", "a.example:8443", "/?y"),
        ("https://[2606:4700:0::1111]:444/", "2606:4700::1111", "[2606:4700::1111]:444", "/"),
        ("https://bücher.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"),
        ("https://a。example/", "a.example", "a.example", "/"),
    ],
)
def test_a_url_has_one_reading(url: str, host: str, authority: str, target: str) -> None:
    receiver = parse_callback_url(url)

    assert (receiver.host, receiver.authority, receiver.target) == (host, authority, target)


@pytest.mark.parametrize(
    "url",
    [
        # our own side, spelt plainly
        "https://localhost/", "https://localhost./", "https://a.localhost/", "https://127.0.0.1/", "https://router/",
        "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://169.254.169.254/",
        "https://[64:ff9b::10.0.0.1]/", "https://[2002:a00:1::]/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/",
        # … and as numbers
        "https://2130706433/", "https://0x7f000001/", "https://017700000001/", "https://0177.0.0.1/", "https://127.1/",
        "https://0x7f.0.0.1/", "https://127.0.0.0x1/", "https://8.8.8.8.8/", "https://08.8.8.8/",
        # … and in other scripts, which become digits and dots
        "https://１２７.０.０.１/", "https://127。0。0。1/", "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "https://%31%32%37.0.0.1/",
        # other doors
        "http://hooks.acme.example/", "ftp://hooks.acme.example/", "file:///etc/passwd", "gopher://a.example/",
        "https://hooks.acme.example:22/", "https://hooks.acme.example:80/", "https://hooks.acme.example:0/",
        "https://hooks.acme.example:65536/", "https://hooks.acme.example:/", "https://hooks.acme.example:4e2/",
        # readings that differ from library to library
        "https://user@hooks.acme.example/", "https://user:pass@hooks.acme.example/", "https://a.example@127.0.0.1/",
        "https://a.example\\@127.0.0.1/", "https://a.example#@127.0.0.1/", "https://a.example/#x", "https:///a.example/",
        "https://a.example /", "https://a.example/ x", "https://a.example/\r\nX: y", "https://a\t.example/",
        "https://a.example/\x00", "https://a.example/<", "https://a.example/%zz", "https://a..example/",
        "https://-a.example/", "https://a.example,b.example/", "https://a.example;b/",
        "https://", "a.example", "",
        "https://" + "a." * 127 + "example/", "https://a.example/" + "x" * 2048, "https://[v1.a]/", "https://[]/",
    ],
)  # fmt: skip
def test_everything_else_is_refused(url: str) -> None:
    assert refused(url)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "{:#x}", "0{:o}", "{:#X}"]))
def test_no_address_hides_in_a_number(number: int, form: str) -> None:
    assert refused(f"https://{form.format(number)}/")


@given(st.ip_addresses(v=4), st.lists(st.sampled_from(["{}", "{:#x}", "0{:o}"]), min_size=4, max_size=4))
def test_an_address_has_one_spelling(address: IPv4Address, forms: list[str]) -> None:
    text = ".".join(form.format(byte) for form, byte in zip(forms, address.packed, strict=True))
    if text != str(address):
        assert refused(f"https://{text}/")


@given(st.text(max_size=40))
def test_no_text_makes_the_reader_stumble(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}.example/{text}", f"https://a.example{text}"):
        try:
            receiver = parse_callback_url(url)
        except ValueError:
            continue
        assert receiver.host.isascii()
        assert receiver.target.startswith("/")
        assert not set(receiver.host + receiver.target) & set(" \r\n\t\\@#")


def test_an_operator_may_allow_networks_and_names_and_plain_http_to_them() -> None:
    for url in ("http://127.0.0.1:8080/", "https://127.0.0.1/", "http://[::1]:99/", "http://receiver:81/x"):
        assert refused(url)
        assert not refused(url, TESTING)
    for url in ("http://hooks.acme.example/", "http://10.0.0.1/", "http://localhost/", "http://other/"):
        assert refused(url, TESTING)


def test_one_refused_address_refuses_all_that_a_name_resolved_to() -> None:
    name = parse_callback_url("https://hooks.acme.example/")

    assert resolved_blocked_reason(name, ["8.8.8.8", "2606:4700::1"], PUBLIC) is None
    assert resolved_blocked_reason(name, ["8.8.8.8", "10.0.0.1"], PUBLIC) is not None
    assert resolved_blocked_reason(name, ["::ffff:127.0.0.1"], PUBLIC) is not None
    assert resolved_blocked_reason(name, ["127.0.0.1"], TESTING) is None  # the network is listed
    assert (
        resolved_blocked_reason(parse_callback_url("https://receiver/"), ["10.0.0.9"], TESTING) is None
    )  # the name is


def test_a_refusal_points_at_the_field_and_says_who_could_allow_it() -> None:
    with pytest.raises(RequestInvalid) as caught:
        check_callback_url("https://10.0.0.1/", PUBLIC)

    assert caught.value.pointer == "/callback/url"
    assert "10.0.0.1 is private" in caught.value.message
    assert "REBASE_CALLBACK_ALLOW" in str(caught.value.hint)


def test_events_default_to_every_end_and_are_kept_once_in_one_order() -> None:
    spec = CallbackSpec.model_validate({"url": "https://a.example/"})
    assert [event.value for event in spec.events] == [
        "job.succeeded",
        "job.rejected",
        "job.failed",
        "job.cancelled",
    ]
    one = CallbackSpec.model_validate(
        {"url": "https://a.example/", "events": ["job.failed", "job.succeeded", "job.failed"]}
    )
    other = CallbackSpec.model_validate(
        {"url": "https://a.example/", "events": ["job.succeeded", "job.failed"]}
    )
    assert one == other
    for events in ([], ["job.exploded"]):
        with pytest.raises(ValidationError):
            CallbackSpec.model_validate({"url": "https://a.example/", "events": events})


@pytest.mark.parametrize(
    "setting", [{"callback_allow": "10.0.0.1/8"}, {"callback_waits_s": "5,x"}, {"callback_waits_s": "-1"}]
)
def test_settings_that_cannot_be_read_are_refused_at_the_start(setting: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, **setting)
