"""What a cached factorization is the factorization of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property


@dataclass(frozen=True)
class FactorKey:
    """One truncated SVD: a tensor of a base model at a pinned commit, the rank asked for, the algorithm's
    version.

    `tensor` names the matrix that was factorized and nothing else: for a slice of a fused tensor it must
    say which.
    `sha` is the 40-hex commit, never a branch: an entry can then never be out of date.
    """

    repo_id: str
    sha: str
    tensor: str
    rank: int
    version: int

    @cached_property
    def canonical(self) -> str:
        """The fields as JSON with one spelling only."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical` in hex; the entry's name in both tiers."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()
