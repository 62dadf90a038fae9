"""Where tensors are worked on."""

from __future__ import annotations

from typing import Literal

import torch

from rebase.errors import RequestInvalid


def is_out_of_memory(exc: BaseException) -> bool:
    """Did an allocation fail, on the GPU or in main memory? For the latter torch has no type of its own."""
    if isinstance(exc, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(exc, RuntimeError) and "can't allocate memory" in str(exc)


def pick_device(wish: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this worker. Raises RequestInvalid when CUDA is demanded but absent."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise RequestInvalid(
            "REBASE_DEVICE is 'cuda' but this machine offers no CUDA device.",
            hint="Set REBASE_DEVICE=auto or cpu, or start the worker on a GPU machine.",
        )
    if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()):
        # TF32 would lose three digits in the Gram matrices.
        torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda")
    return torch.device("cpu")
