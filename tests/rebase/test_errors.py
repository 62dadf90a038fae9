"""What of an exception reaches people."""

from __future__ import annotations

from rebase.errors import UnsafeFile, to_public_error


def test_text_from_a_strangers_file_cannot_steer_a_terminal() -> None:
    message = to_public_error(UnsafeFile("tensor 'a\x1b]0;owned\x07\u202eb' is odd\nsecond line")).message

    assert message == "tensor 'a\\x1b]0;owned\\x07\\u202eb' is odd\nsecond line"
