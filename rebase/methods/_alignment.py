"""Aligns two coordinate systems on paired rows by orthogonal Procrustes, and scores held-out pairs.

X: (n, k_s) and Y: (n, k_t) are the same n tokens in the source's and the target's coordinates.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.linalg import procrustes
from rebase.lora.low_rank import Factors
from rebase.methods.base import Port

# Part of the cache key of an alignment: raise it whenever the same rows and factors may give another fit.
ALIGNMENT_VERSION = 1

# Every eighth pair is held out: enough to evaluate on, with little effect on the fit.
HELD_OUT_EVERY = 8

# If the ratio of the held-out residual to the shuffled residual is not below this, the pairs carry almost no
# information. Unrelated random rows score 1.00 ± 0.03; SmolLM2-135M → Gemma-3-270M 0.84 to 0.98 per site,
# 0.92 on average; a rotated copy of the same base 0.00.
UNINFORMATIVE_ABOVE = 0.97

_FINGERPRINT_ROWS = (
    16  # of U and of V in a fingerprint; hashing them whole would cost as much as reading them
)


@dataclass(frozen=True, slots=True)
class Alignment:
    """`rotation` (k_s, k_t): X·rotation ≈ Y, a partial isometry.

    `residual` and `shuffled_residual`, in [0, 1], are those of held-out pairs, correctly paired and shuffled.
    `fitted_rows`: pairs in the fit. `reachable_share`: share of the smaller side's directions that the pairs
    determine.
    """

    rotation: Tensor
    residual: float
    shuffled_residual: float
    fitted_rows: int
    reachable_share: float

    @property
    def is_informative(self) -> bool:
        """Does the correct pairing agree clearly better than a shuffled one?"""
        return self.residual < UNINFORMATIVE_ABOVE * self.shuffled_residual

    def to_tensors(self, port: Port) -> dict[str, Tensor]:
        """The alignment as float32 tensors named after its port; the inverse of `from_tensors`."""
        measured = torch.tensor(
            [self.residual, self.shuffled_residual, float(self.fitted_rows), self.reachable_share]
        )
        return {f"rotation_{port}": self.rotation, f"measured_{port}": measured}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], port: Port) -> Alignment:
        """Restore an alignment from `to_tensors`; its measurements are rounded to float32."""
        residual, shuffled_residual, fitted_rows, reachable_share = tensors[f"measured_{port}"].tolist()
        return cls(
            tensors[f"rotation_{port}"], residual, shuffled_residual, int(fitted_rows), reachable_share
        )


def align(X: Tensor, Y: Tensor) -> Alignment:
    """Orthogonal Procrustes on paired rows, evaluated on held-out pairs."""
    held_out = torch.arange(X.shape[0], device=X.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    rotation = procrustes(X[~held_out], Y[~held_out])
    predicted, expected = X[held_out] @ rotation, Y[held_out]
    count = expected.shape[0]
    return Alignment(
        rotation=rotation,
        residual=_compute_residual(predicted, expected),
        # A cyclic shift by half the rows: a shuffle without fixed points that needs no seed.
        shuffled_residual=_compute_residual(predicted, expected.roll(max(count // 2, 1), dims=0)),
        fitted_rows=int((~held_out).sum()),
        reachable_share=float(rotation.square().sum()) / min(rotation.shape),
    )


def build_alignment_name(source: Factors, target: Factors) -> str:
    """A cache name for the alignment of exactly these factors.

    A rotation is only valid for the singular vectors it was fitted to: factors recomputed on another machine
    or device may have other signs or mix close directions differently.
    """
    k_s, k_t = source.S.numel(), target.S.numel()
    return f"alignment v{ALIGNMENT_VERSION} {k_s}x{k_t} {_fingerprint(source)} {_fingerprint(target)}"


def _fingerprint(factors: Factors) -> str:
    """64 bits of a hash over S and evenly spaced rows of U and V, which reveal each direction's sign."""
    sha = hashlib.sha256(factors.S.cpu().numpy().tobytes())
    for vectors in (factors.U, factors.V):
        row_indices = torch.linspace(0, vectors.shape[0] - 1, min(vectors.shape[0], _FINGERPRINT_ROWS)).long()
        sha.update(vectors[row_indices.to(vectors.device)].cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _compute_residual(predicted: Tensor, expected: Tensor) -> float:
    """min over c ≥ 0 of ‖c·predicted − expected‖ / ‖expected‖. The scale is free: norms differ by model."""
    norm_product = float(torch.linalg.vector_norm(predicted) * torch.linalg.vector_norm(expected))
    cosine = float((predicted * expected).sum()) / norm_product if norm_product > 0.0 else 0.0
    return math.sqrt(max(1.0 - max(cosine, 0.0) ** 2, 0.0))
