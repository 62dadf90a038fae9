"""Cache keys: each names every input that a cached computation depends on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Key(ABC):
    """Identifies an entry by everything its contents depend on, so that it can never be stale."""

    kind: ClassVar[str]

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The kind and the key's own fields."""
        return {"kind": self.kind, **asdict(self)}

    @cached_property
    def canonical(self) -> str:
        """`fields` as canonical JSON."""
        return json.dumps(self.fields, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical` in hex: the entry's name in both tiers."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @abstractmethod
    def fits(self, shapes: Shapes, numbers: Collection[str]) -> bool:
        """Whether an entry for this key can contain tensors of these names and shapes, and these numbers."""

    @property
    @abstractmethod
    def bases(self) -> str:
        """The base model or models, for display."""

    @property
    @abstractmethod
    def contents(self) -> str:
        """What the entry contains, for display."""


@dataclass(frozen=True)
class FactorKey(Key):
    """One truncated SVD: a base model's tensor at a pinned commit, the requested rank, the code version.

    `tensor` identifies exactly the factorized matrix, including the slice of a fused tensor.
    `sha` is the 40-hex commit, never a branch.
    """

    kind: ClassVar[str] = "factors"

    repo_id: str
    sha: str
    tensor: str
    rank: int
    version: int

    def fits(self, shapes: Shapes, numbers: Collection[str]) -> bool:
        """U (o, k), S (k,), V (i, k) with k at most the requested rank, and their energy."""
        if set(shapes) != {"S", "U", "V"} or set(numbers) != {"energy"}:
            return False
        if [len(shapes[name]) for name in "SUV"] != [1, 2, 2]:
            return False
        (k,), (o, k_u), (i, k_v) = shapes["S"], shapes["U"], shapes["V"]
        return k == k_u == k_v <= min(self.rank, o, i)

    @property
    def bases(self) -> str:
        """The repo."""
        return self.repo_id

    @property
    def contents(self) -> str:
        """The tensor and the rank."""
        return f"{self.tensor}, rank {self.rank}"


@dataclass(frozen=True)
class PairKey(Key):
    """Tensors that depend on two pinned bases, a site of each, and the tokens that pair them.

    `what` starts with a word for display and includes every setting and algorithm version. `anchors` is the
    digest of the paired rows (`rebase.evidence.embeddings`).
    """

    kind: ClassVar[str] = "pair"

    source_repo: str
    source_sha: str
    source_site: str
    target_repo: str
    target_sha: str
    target_site: str
    what: str
    anchors: str

    def fits(self, shapes: Shapes, numbers: Collection[str]) -> bool:
        """Any tensors, as `what` determines them; no numbers."""
        return bool(shapes) and not numbers

    @property
    def bases(self) -> str:
        """Both repos."""
        return f"{self.source_repo} → {self.target_repo}"

    @property
    def contents(self) -> str:
        """The sites and the first word of `what`."""
        return f"{self.source_site} → {self.target_site}, {self.what.split(' ', 1)[0]}"


@dataclass(frozen=True)
class PoolKey(Key):
    """Inner products between one side's anchors of a pool at one site: (N, N), as two float32 parts and a
    power of two.

    `anchors` is the digest of the repos and commits of their base and adapters, in order.
    """

    kind: ClassVar[str] = "pool"

    anchors: str
    count: int
    site: str
    space: str
    version: int
    factors_version: int  # a DoRA's update is expanded by the same algorithm as base weights

    def fits(self, shapes: Shapes, numbers: Collection[str]) -> bool:
        """Two square parts and the exponent; no numbers."""
        square = (self.count, self.count)
        return dict(shapes) == {"high": square, "low": square, "exponent": (1,)} and not numbers

    @property
    def bases(self) -> str:
        """The pool."""
        return f"{self.count} anchors {self.anchors[:12]}"

    @property
    def contents(self) -> str:
        """The site and the space."""
        return f"{self.site}, inner products of {self.space}"


_KEY_TYPES: Mapping[str, type[Key]] = {kind.kind: kind for kind in (FactorKey, PairKey, PoolKey)}


def parse_key(fields: Mapping[str, Any]) -> Key:
    """The key with these `fields`. Raises KeyError or TypeError if they are invalid."""
    values = dict(fields)
    return _KEY_TYPES[values.pop("kind")](**values)
