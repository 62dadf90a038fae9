"""The figures of a job's evaluation as rows, so that they can be compared across jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import Connection, delete, insert, select

from core.jobs.records import FigureRow
from core.tables.jobs import EvaluationFigure

_COLUMNS = [getattr(EvaluationFigure, field.name) for field in fields(FigureRow)]


def replace_figures(connection: Connection, job_id: str, figures: Sequence[FigureRow]) -> None:
    """Write them in the caller's transaction; what an earlier attempt left goes."""
    connection.execute(delete(EvaluationFigure).where(EvaluationFigure.job_id == job_id))
    rows = [{"job_id": job_id, "position": n, **asdict(figure)} for n, figure in enumerate(figures)]
    if rows:
        connection.execute(insert(EvaluationFigure), rows)


def read_figures(connection: Connection, job_id: str) -> tuple[FigureRow, ...]:
    """The figures as they were saved; none where nothing was evaluated."""
    query = select(*_COLUMNS).where(EvaluationFigure.job_id == job_id).order_by(EvaluationFigure.position)
    return tuple(FigureRow(*row) for row in connection.execute(query))
