"""A job's evaluation metrics and layer similarities as rows, so that they can be compared across jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import Connection, delete, insert, select

from rebase.store.records import LayerSimilarityMatrix, MetricRow
from rebase.store.tables.jobs import EvaluationMetric, LayerSimilarity

_METRIC_COLUMNS = [getattr(EvaluationMetric, field.name) for field in fields(MetricRow)]


def replace_metrics(connection: Connection, job_id: str, metrics: Sequence[MetricRow]) -> None:
    """Write the metrics in the caller's transaction, replacing those of earlier attempts."""
    connection.execute(delete(EvaluationMetric).where(EvaluationMetric.job_id == job_id))
    rows = [
        {"job_id": job_id, "position": position, **asdict(metric)} for position, metric in enumerate(metrics)
    ]
    if rows:
        connection.execute(insert(EvaluationMetric), rows)


def read_metrics(connection: Connection, job_id: str) -> tuple[MetricRow, ...]:
    """The stored metrics; empty if nothing was evaluated."""
    query = (
        select(*_METRIC_COLUMNS).where(EvaluationMetric.job_id == job_id).order_by(EvaluationMetric.position)
    )
    return tuple(MetricRow(*row) for row in connection.execute(query))


# The layer similarity matrix of a job, one row per source and target layer.


def replace_layer_similarity(connection: Connection, job_id: str, matrix: LayerSimilarityMatrix) -> None:
    """Write the matrix in the caller's transaction, replacing that of earlier attempts."""
    connection.execute(delete(LayerSimilarity).where(LayerSimilarity.job_id == job_id))
    rows = [
        {
            "job_id": job_id,
            "source_layer": source,
            "target_layer": target,
            "cka": cka,
            "chosen": matrix.layer_map[target] == source,
        }
        for source, row in enumerate(matrix.similarity)
        for target, cka in enumerate(row)
    ]
    if rows:
        connection.execute(insert(LayerSimilarity), rows)


def read_layer_similarity(connection: Connection, job_id: str) -> LayerSimilarityMatrix:
    """The stored matrix; empty if there is none."""
    query = (
        select(LayerSimilarity.target_layer, LayerSimilarity.cka, LayerSimilarity.chosen)
        .where(LayerSimilarity.job_id == job_id)
        .order_by(LayerSimilarity.source_layer, LayerSimilarity.target_layer)
    )
    similarity: list[list[float]] = []
    chosen: dict[int, int] = {}
    for target, cka, is_chosen in connection.execute(query):
        if target == 0:
            similarity.append([])
        similarity[-1].append(cka)
        if is_chosen:
            chosen[target] = len(similarity) - 1
    return LayerSimilarityMatrix(similarity, [chosen[target] for target in sorted(chosen)])
