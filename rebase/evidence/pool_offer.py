"""The anchor pool that a conversion may use: found by id or by the two bases, opened on demand."""

from __future__ import annotations

from dataclasses import dataclass, field

from rebase.errors import IncompatiblePair, RebaseError, TransferError
from rebase.evidence.anchor_pool import SIDES, LoadedAnchorPool, load_anchor_pool, make_pool_unusable_error
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import Side
from rebase.methods.base_params import MethodParams
from rebase.models.base_pair import BaseModelRef
from rebase.report.progress import ProgressReporter
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import AnchorPools, Pool
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import Phase


@dataclass(slots=True)
class PoolOffer:
    """Implements `rebase.precheck.precheck.Offer`. `is_requested`: the request names anchor_ridge, so errors
    with an anchor are raised; for `auto` they are a reason to do without the pool."""

    pool: Pool
    inputs: LoadedInputs
    runtime: Runtime
    progress: ProgressReporter
    is_requested: bool
    _loaded_pool: LoadedAnchorPool | None = field(default=None)

    @property
    def count(self) -> int:
        """Number of anchors in the pool."""
        return len(self.pool.spec.anchors)

    def open(self) -> LoadedAnchorPool:
        """Open the pool once, checking every anchor. Raises IncompatiblePair and errors of hub and reader."""
        if self._loaded_pool is None:
            try:
                self._loaded_pool = load_anchor_pool(
                    self.pool,
                    self.runtime.hub,
                    {
                        "source": BaseModelRef(self.inputs.pinned.source, self.inputs.source),
                        "target": BaseModelRef(self.inputs.pinned.target, self.inputs.target),
                    },
                    self.inputs.pairing,
                    self.inputs.adapter,
                    self.runtime.cache,
                    self.runtime.device,
                    self.progress,
                    phase=Phase.PRECHECKING,
                    lenient=not self.is_requested,
                    pointer=lambda number, side: "/method/pool" if self.is_requested else "/method",
                )
            except (RebaseError, TransferError) as exc:
                if self.is_requested or getattr(exc, "retryable", False) or isinstance(exc, IncompatiblePair):
                    raise
                raise make_pool_unusable_error(exc) from exc
        return self._loaded_pool


def offer_pool(
    params: MethodParams,
    bases: tuple[RepoRef | None, RepoRef],
    inputs: LoadedInputs,
    pools: AnchorPools,
    runtime: Runtime,
    progress: ProgressReporter,
) -> PoolOffer | None:
    """The pool named by `method.pool`, or the newest one for these bases; None if there is none or the method
    does not use one.

    `bases`: source and target as given in the request. Raises NotFound or StateConflict, and IncompatiblePair
    if the pool is for other bases.
    """
    pinned, (source_ref, target_ref) = inputs.pinned, bases
    if not params.uses_pool:
        return None
    is_requested = not params.chooses_method
    if params.pool_id is not None:
        pool: Pool | None = pools.get(params.pool_id)
    else:
        pool = pools.find_for_bases(pinned.source.repo_id, pinned.target.repo_id)
    if pool is None:
        return None
    base_ids: dict[Side, set[str]] = {
        "source": {pinned.source.repo_id} | ({source_ref.repo_id} if source_ref else set()),
        "target": {pinned.target.repo_id, target_ref.repo_id},
    }
    for side in SIDES:
        base = (pool.spec.source if side == "source" else pool.spec.target).repo_id
        if base not in base_ids[side]:
            raise IncompatiblePair(
                f"The anchor pool is for the {side} base '{base}', this request for "
                f"'{min(base_ids[side], key=len)}'.",
                hint="Use a pool for these two bases.",
                pointer="/method/pool",
            )
    if not _matches_revisions(pool, bases, inputs):
        if not is_requested:
            return None
        raise IncompatiblePair(
            "The anchor pool is for other commits or subfolders of the same repos.",
            hint="Use a pool for these two revisions and subfolders.",
            pointer="/method/pool",
        )
    return PoolOffer(pool, inputs, runtime, progress, is_requested)


def _matches_revisions(pool: Pool, bases: tuple[RepoRef | None, RepoRef], inputs: LoadedInputs) -> bool:
    """If one repo holds both bases, its name does not distinguish them, so their revisions must match. Their
    subfolders must match in any case."""
    spec, pinned, (source_ref, target_ref) = pool.spec, inputs.pinned, bases
    if (spec.source.subfolder, spec.target.subfolder) != (pinned.source.subfolder, pinned.target.subfolder):
        return False
    if pinned.source.repo_id != pinned.target.repo_id:
        return True
    source_revision = source_ref.revision if source_ref else None
    return spec.source.revision in {pinned.source.sha, source_revision} and spec.target.revision in {
        pinned.target.sha,
        target_ref.revision,
    }
