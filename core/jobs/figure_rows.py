"""The figures of a job's evaluation as rows, so that they can be compared across jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import Connection, delete, insert, select

from core.jobs.records import MetricRow
from core.tables.jobs import EvaluationMetric

_METRIC_COLUMNS = [getattr(EvaluationMetric, field.name) for field in fields(MetricRow)]


def replace_metrics(connection: Connection, job_id: str, metrics: Sequence[MetricRow]) -> None:
    """Write them in the caller's transaction; what an earlier attempt left goes."""
    connection.execute(delete(EvaluationMetric).where(EvaluationMetric.job_id == job_id))
    rows = [
        {"job_id": job_id, "position": position, **asdict(metric)} for position, metric in enumerate(metrics)
    ]
    if rows:
        connection.execute(insert(EvaluationMetric), rows)


def read_metrics(connection: Connection, job_id: str) -> tuple[MetricRow, ...]:
    """The figures as they were saved; none where nothing was evaluated."""
    query = (
        select(*_METRIC_COLUMNS).where(EvaluationMetric.job_id == job_id).order_by(EvaluationMetric.position)
    )
    return tuple(MetricRow(*row) for row in connection.execute(query))
