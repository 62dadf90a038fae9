"""The last line of defence: whatever has the shape or the name of a secret is blanked in logs and errors."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import structlog

from rebase.errors import HubError, to_public_error
from rebase.logging import configure_logging, get_logger, redact_event
from rebase.redaction import REDACTED, scrub
from rebase.settings import Settings

HUB, OURS, SIGNING = "hf_" + "aB3" * 11, "rb_" + "x-Y_9" * 8, "whsec_" + "a+B/c=" * 6


@pytest.mark.parametrize("secret", [HUB, OURS, SIGNING])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda secret: f"the token {secret} was refused",
        lambda secret: [{"inner": [f"x={secret}"]}],
        lambda secret: {"headers": {"Authorization": f"Bearer {secret}"}},
        lambda secret: ValueError(f"bad {secret}"),
        lambda secret: (1, f"https://user:{secret}@hub.example/x"),
    ],
)
def test_a_secret_is_blanked_however_deep_it_lies(secret: str, wrap: Any) -> None:
    event = redact_event(None, "info", {"event": "e", "value": wrap(secret)})

    assert secret not in json.dumps(event)
    assert REDACTED in json.dumps(event)


def test_what_is_no_secret_stays() -> None:
    event = {"event": "claimed", "job_id": "0" * 32, "ms": 1.5, "ok": True, "repo": "acme/hf-lora", "n": None}

    assert redact_event(None, "info", dict(event)) == event


def _fail(token: str) -> None:
    raise RuntimeError(f"the Hub said no to {token}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_neither_message_nor_traceback_nor_another_librarys_line_shows_one(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging(Settings(_env_file=None, log_format=log_format))
    try:
        token = HUB  # a local variable of the frame that fails
        try:
            _fail(token)
        except RuntimeError:
            get_logger("x").error("failed", exc_info=True, authorization=token)
            logging.getLogger("elsewhere").exception("with %s", token)
        said = capsys.readouterr().err
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True)

    assert "the Hub said no" in said
    assert HUB not in said


def test_an_error_that_quotes_a_token_reaches_its_reader_without_it() -> None:
    said = to_public_error(
        HubError(f"acme/hf_lora_of_mine: the Hub rejected {HUB}, {OURS} and {SIGNING}")
    ).message

    assert said.startswith("acme/hf_lora_of_mine: the Hub rejected")
    assert not [secret for secret in (HUB, OURS, SIGNING) if secret in said]


def test_a_password_in_an_address_is_blanked() -> None:
    assert scrub("redis://user:pass@host/0") == f"redis://{REDACTED}@host/0"
