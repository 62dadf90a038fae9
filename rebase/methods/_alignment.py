"""Matching two k-dimensional coordinate systems by paired rows, and how well held-out pairs agree.

X: (n, k_s) and Y: (n, k_t) are the same n anchors seen in the source's and the target's coordinates.
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

# Part of what names a kept alignment: raise it whenever the same rows and factors may give another fit.
ALIGNMENT_VERSION = 1

# Every eighth anchor is kept out of the fit: enough to measure with, and the fit barely misses them.
HELD_OUT_EVERY = 8

# A held-out residual that is not below this share of its shuffled null says that the anchors carry next to
# nothing. Unrelated random rows score 1.00 ± 0.03; SmolLM2-135M → Gemma-3-270M 0.84 to 0.98 per site, 0.92 on
# the mean; a rotated copy of the same base 0.00.
UNINFORMATIVE_ABOVE = 0.97

_FINGERPRINT_ROWS = (
    16  # of U and of V in a fingerprint; hashing them whole would cost as much as reading them
)


@dataclass(frozen=True, slots=True)
class Alignment:
    """`rotation` (k_s, k_t): X·rotation ≈ Y, a partial isometry.

    `residual` and `null` lie in [0, 1] and come from held-out anchors, truly paired and shuffled. `fitted`:
    anchors in the fit. `reached`: share of the smaller side's directions that the anchors determine.
    """

    rotation: Tensor
    residual: float
    shuffled_residual: float
    fitted_rows: int
    reachable_share: float

    @property
    def is_informative(self) -> bool:
        """Does the true pairing agree clearly better than a shuffled one?"""
        return self.residual < UNINFORMATIVE_ABOVE * self.shuffled_residual

    def to_tensors(self, port: Port) -> dict[str, Tensor]:
        """The alignment as float32 tensors named for its port; `from_tensors` takes them back."""
        measured = torch.tensor(
            [self.residual, self.shuffled_residual, float(self.fitted_rows), self.reachable_share]
        )
        return {f"rotation_{port}": self.rotation, f"measured_{port}": measured}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], port: Port) -> Alignment:
        """What `tensors` gave, its measurements rounded to float32."""
        residual, shuffled_residual, fitted_rows, reachable_share = tensors[f"measured_{port}"].tolist()
        return cls(
            tensors[f"rotation_{port}"], residual, shuffled_residual, int(fitted_rows), reachable_share
        )


def align(X: Tensor, Y: Tensor) -> Alignment:
    """Orthogonal Procrustes, measured on anchors that it has not seen."""
    held_out = torch.arange(X.shape[0], device=X.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    rotation = procrustes(X[~held_out], Y[~held_out])
    predicted, expected = X[held_out] @ rotation, Y[held_out]
    count = expected.shape[0]
    return Alignment(
        rotation=rotation,
        residual=_compute_residual(predicted, expected),
        # A cyclic shift by half pairs every anchor with a far one: a shuffle without fixed points or a seed.
        shuffled_residual=_compute_residual(predicted, expected.roll(max(count // 2, 1), dims=0)),
        fitted_rows=int((~held_out).sum()),
        reachable_share=float(rotation.square().sum()) / min(rotation.shape),
    )


def build_alignment_name(source: Factors, target: Factors) -> str:
    """Names the alignment of exactly these factors.

    A rotation is of use with the singular vectors that it was fitted to and no others: factors that another
    machine or device computed again may have other signs, or mix close directions otherwise.
    """
    k_s, k_t = source.S.numel(), target.S.numel()
    return f"alignment v{ALIGNMENT_VERSION} {k_s}x{k_t} {_fingerprint(source)} {_fingerprint(target)}"


def _fingerprint(factors: Factors) -> str:
    """64 bits of a hash over S and evenly spread rows of U and V, in which each direction's sign shows."""
    sha = hashlib.sha256(factors.S.cpu().numpy().tobytes())
    for vectors in (factors.U, factors.V):
        row_indices = torch.linspace(0, vectors.shape[0] - 1, min(vectors.shape[0], _FINGERPRINT_ROWS)).long()
        sha.update(vectors[row_indices.to(vectors.device)].cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _compute_residual(predicted: Tensor, expected: Tensor) -> float:
    """min over c ≥ 0 of ‖c·moved − wanted‖ / ‖wanted‖: a common scale is free, as norms differ by model."""
    norm_product = float(torch.linalg.vector_norm(predicted) * torch.linalg.vector_norm(expected))
    cosine = float((predicted * expected).sum()) / norm_product if norm_product > 0.0 else 0.0
    return math.sqrt(max(1.0 - max(cosine, 0.0) ** 2, 0.0))
