"""`auto`: which method, by rules that anybody can follow.

1. Every site has the same shape on both sides and the bases share their coordinates → `copy`. Between
   relatives it does better than anything more elaborate [002].
2. Otherwise, a pool of tasks with an adapter on both bases → `anchor_ridge` [003].
3. Otherwise → `cross_lora` with `anchored`, the only cross-shape reading here that looks at evidence.
`index` is never chosen: it pairs directions that have nothing to do with each other.
Whether the chosen method is good enough is the verdict's business, not the choice's.
"""

from __future__ import annotations

from collections.abc import Mapping

from transfer.catalogue import AnchorRidgeParams, AutoParams, CopyParams, CrossLoraParams, MethodParams
from transfer.precheck.result import Reason

# relative_distance d means a cosine of about 1 − d²/2 between the two weights. At 0.7 that is 0.75, far above
# the 0 of two unrelated trainings (d = √2): coordinate j of one base still is coordinate j of the other.
SHARED_COORDINATES = 0.7


def choose(params: MethodParams, measured: Mapping[str, float]) -> tuple[MethodParams, tuple[Reason, ...]]:
    """Parameters of the method to run, and why. Anything but `auto` is returned as it is.

    `measured` holds `shapes_equal`, where shapes agree `relative_distance`, and where a pool covers the bases
    `pool_anchors`.
    """
    if not isinstance(params, AutoParams):
        return params, ()
    distance = measured.get("relative_distance")
    if measured["shapes_equal"] == 1.0 and distance is not None and distance <= SHARED_COORDINATES:
        why = f"auto chose copy: shapes agree and the bases differ by {distance:.3f} of their norm."
        return CopyParams(layer_scale=params.layer_scale, dare=params.dare), (
            Reason("auto_copy", why, "info"),
        )
    unlike = (
        "shapes differ"
        if measured["shapes_equal"] < 1.0
        else f"the bases differ by {distance:.2f} of their norm"
        if distance is not None
        else "the base weights are zero"
    )
    if (size := measured.get("pool_anchors", 0.0)) > 0.0:
        why = f"auto chose anchor_ridge: {unlike}, and a pool has {size:.0f} tasks with an adapter on both."
        return AnchorRidgeParams(layer_scale=params.layer_scale, dare=params.dare), (
            Reason("auto_anchor_ridge", why, "info"),
        )
    why = f"auto chose cross_lora with anchored alignment: {unlike}, so copying would mean nothing."
    return CrossLoraParams(layer_scale=params.layer_scale, dare=params.dare), (
        Reason("auto_cross_lora", why, "info"),
    )
