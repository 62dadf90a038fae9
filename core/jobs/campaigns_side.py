"""Campaigns of a tenant: look, and page. What a campaign shows follows from its jobs, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, select

from core.errors import NotFound
from core.jobs.base import StoreBase
from core.jobs.client_side import check_limit, is_job_id
from core.jobs.records import FigureRow, JobRecord, decode_cursor, encode_cursor
from core.jobs.release_records import CampaignEntry, CampaignPage, CampaignRecord, Tally
from core.releases.plan import Stage
from core.releases.states import CampaignState, Stored
from core.states import TERMINAL, JobState
from core.tables.jobs import EvaluationFigure, Job
from core.tables.releases import Campaign, CampaignJob

_TOLD = ("moved", "target")
_FIGURES = [getattr(EvaluationFigure, field.name) for field in fields(FigureRow)]


class CampaignsSide(StoreBase):
    """What a reader may ask."""

    def get_campaign(self, tenant_id: str, campaign_id: str) -> CampaignRecord:
        """One campaign with its tallies. Raises NotFound."""
        with self.db.read() as connection:
            return load_campaign(connection, tenant_id, campaign_id)

    def list_campaigns(
        self,
        tenant_id: str,
        *,
        state: CampaignState | None = None,
        subscription: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> CampaignPage:
        """Newest first. Raises RequestInvalid for a foreign cursor."""
        check_limit(limit)
        query = _of(tenant_id).order_by(Campaign.id.desc())
        if state is not None:
            query = query.where(shown_state() == state.value)
        if subscription is not None:
            query = query.where(Campaign.subscription_id == subscription)
        if cursor is not None:
            query = query.where(Campaign.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
            found = _with_tallies(connection, rows[:limit])
        return CampaignPage(found, encode_cursor(found[-1].id) if len(rows) > limit else None)

    def campaign_entries(self, tenant_id: str, campaign_id: str) -> list[CampaignEntry]:
        """Every job of a campaign, by adapter, pre-checks before conversions. Raises NotFound."""
        query = (
            select(Job.__table__, CampaignJob.stage, CampaignJob.position)
            .join(CampaignJob, CampaignJob.job_id == Job.id)
            .where(CampaignJob.campaign_id == campaign_id)
            .order_by(CampaignJob.position, CampaignJob.stage.desc())
        )
        with self.db.read() as connection:
            load_campaign(connection, tenant_id, campaign_id)
            rows = connection.execute(query).all()
            figures = _figures(connection, campaign_id)
        return [
            CampaignEntry(row.stage, row.position, JobRecord.from_row(row), tuple(figures[row.id]))
            for row in rows
        ]

    def campaign_counts(self) -> dict[CampaignState, int]:
        """How many campaigns of all tenants are in each state."""
        shown = shown_state().label("shown")
        with self.db.read() as connection:
            rows = connection.execute(select(shown, func.count()).group_by(shown))
            found = {row[0]: row[1] for row in rows}
        return {state: found.get(state.value, 0) for state in CampaignState}


def shown_state() -> ColumnElement[str]:
    """`CampaignState` of a row of `campaigns`."""
    jobs = (
        select(CampaignJob.job_id)
        .join(Job, Job.id == CampaignJob.job_id)
        .where(CampaignJob.campaign_id == Campaign.id)
        .correlate(Campaign)
    )
    active = jobs.where(Job.state.not_in([state.value for state in TERMINAL])).exists()
    unapproved = and_(Campaign.dry_run, Campaign.approved_at.is_(None))
    return case(
        (Campaign.state != Stored.OPEN.value, Campaign.state),
        (and_(active, unapproved), CampaignState.CHECKING.value),
        (active, CampaignState.CONVERTING.value),
        (and_(unapproved, jobs.exists()), CampaignState.AWAITING_APPROVAL.value),
        else_=CampaignState.FINISHED.value,
    )


def load_campaign(connection: Connection, tenant_id: str, campaign_id: str) -> CampaignRecord:
    """One campaign. Raises NotFound."""
    row = None
    if is_job_id(campaign_id):
        row = connection.execute(_of(tenant_id).where(Campaign.id == campaign_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such campaign.", hint="GET /campaigns lists yours.")
    return _with_tallies(connection, [row])[0]


def _of(tenant_id: str) -> Select[Any]:
    query = select(Campaign.__table__, shown_state().label("shown"))
    return query.where(Campaign.tenant_id == tenant_id)


def _with_tallies(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[CampaignRecord, ...]:
    records = [_record(row) for row in rows]
    query = (
        select(CampaignJob.campaign_id, CampaignJob.stage, Job.state, Job.verdict, func.count().label("n"))
        .join(Job, Job.id == CampaignJob.job_id)
        .where(CampaignJob.campaign_id.in_([record.id for record in records]))
        .group_by(CampaignJob.campaign_id, CampaignJob.stage, Job.state, Job.verdict)
    )
    states: dict[tuple[str, Stage], dict[JobState, int]] = defaultdict(lambda: defaultdict(int))
    verdicts: dict[tuple[str, Stage], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in connection.execute(query) if records else ():
        key = (row.campaign_id, row.stage)
        states[key][JobState(row.state)] += row.n
        if row.verdict is not None:
            verdicts[key][row.verdict] += row.n
    stages: tuple[Stage, ...] = ("precheck", "convert")
    return tuple(
        replace(
            record,
            tallies={
                stage: Tally(dict(states[record.id, stage]), dict(verdicts[record.id, stage]))
                for stage in stages
                if (record.id, stage) in states
            },
        )
        for record in records
    )


def _record(row: Row[Any]) -> CampaignRecord:
    values = row._mapping
    names = [name for name in CampaignRecord.__slots__ if name not in ("state", "tallies")]
    return CampaignRecord(state=CampaignState(row.shown), **{name: values[name] for name in names})


def _figures(connection: Connection, campaign_id: str) -> dict[str, list[FigureRow]]:
    """job id → the figures of the moved adapter and of the target alone."""
    query = (
        select(EvaluationFigure.job_id, *_FIGURES)
        .join(CampaignJob, CampaignJob.job_id == EvaluationFigure.job_id)
        .where(CampaignJob.campaign_id == campaign_id, EvaluationFigure.subject.in_(_TOLD))
        .order_by(EvaluationFigure.job_id, EvaluationFigure.position)
    )
    found: dict[str, list[FigureRow]] = defaultdict(list)
    for job_id, *figure in connection.execute(query):
        found[job_id].append(FigureRow(*figure))
    return found
