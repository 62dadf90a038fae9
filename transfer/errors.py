"""Errors of the science.

    TransferError
    ├── UnsupportedAdapter      a PEFT type, module or feature that cannot be carried
    ├── MalformedAdapter        the adapter's own files contradict themselves
    ├── UnsupportedModel        no table row for the architecture, or weights that cannot be read
    ├── IncompatiblePair        this method cannot carry this adapter between these bases
    ├── TrainingFailed          the loss of a method that trains is no longer a number, or it has no text
    ├── GapTooSmall             training on the target gains too little to measure a share of it
    └── VerificationFailed      the result is not what it should be; nothing is published

Each carries a stable `code`, one public sentence (`message`), and where it helps the request field or
file it is about (`pointer`) and what to do (`hint`). Private detail goes to `__cause__`.
"""

from __future__ import annotations

from typing import ClassVar


class TransferError(Exception):
    """Root of the tree. `message` is shown to users; never put a secret or a path of the server in it."""

    code: ClassVar[str] = "transfer_error"

    def __init__(self, message: str, *, hint: str | None = None, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.pointer = pointer


class UnsupportedAdapter(TransferError):
    """The adapter is of a kind that is not carried; names the type or module."""

    code = "unsupported_adapter"


class MalformedAdapter(TransferError):
    """The adapter's files are broken: missing config, wrong shapes, NaN, tensors that match no module."""

    code = "malformed_adapter"


class UnsupportedModel(TransferError):
    """A base model whose architecture or weight format is not known here."""

    code = "unsupported_model"


class IncompatiblePair(TransferError):
    """The method's conditions do not hold for this pair; raised before any expensive work."""

    code = "incompatible_pair"


class TrainingFailed(TransferError):
    """Training cannot go on: a loss that is not finite, or nothing to train on. The settings can mend it."""

    code = "training_failed"


class GapTooSmall(TransferError):
    """A share of next to nothing would be noise."""

    code = "gap_too_small"


class VerificationFailed(TransferError):
    """The converted adapter did not pass its checks, so it is not published."""

    code = "verification_failed"
