"""Reading campaigns. A campaign's state and tallies are derived from its jobs, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, select

from rebase.errors import NotFound
from rebase.schemas.states import TERMINAL, CampaignDbState, CampaignState, JobState
from rebase.schemas.subscriptions import Stage
from rebase.store.records import CampaignEntry, CampaignPage, CampaignRecord, JobRecord, MetricRow, Tally
from rebase.store.repository import Repository, check_page_limit, decode_cursor, encode_cursor, is_valid_id
from rebase.store.tables.jobs import EvaluationMetric, Job
from rebase.store.tables.releases import Campaign, CampaignJob

_REPORTED_SUBJECTS = ("moved", "target")
_METRIC_COLUMNS = [getattr(EvaluationMetric, field.name) for field in fields(MetricRow)]


class CampaignRepository(Repository):
    """Read-only queries on campaigns."""

    def get(self, tenant_id: str, campaign_id: str) -> CampaignRecord:
        """One campaign with its tallies. Raises NotFound."""
        with self.db.read() as connection:
            return load_campaign(connection, tenant_id, campaign_id)

    def list(
        self,
        tenant_id: str,
        *,
        state: CampaignState | None = None,
        subscription: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> CampaignPage:
        """Newest first. Raises RequestInvalid for an invalid cursor."""
        check_page_limit(limit)
        query = _select_campaigns(tenant_id).order_by(Campaign.id.desc())
        if state is not None:
            query = query.where(display_state() == state.value)
        if subscription is not None:
            query = query.where(Campaign.subscription_id == subscription)
        if cursor is not None:
            query = query.where(Campaign.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
            campaigns = _attach_tallies(connection, rows[:limit])
        return CampaignPage(campaigns, encode_cursor(campaigns[-1].id) if len(rows) > limit else None)

    def list_entries(self, tenant_id: str, campaign_id: str) -> Sequence[CampaignEntry]:
        """Every job of a campaign, ordered by adapter, pre-check before conversion. Raises NotFound."""
        query = (
            select(Job.__table__, CampaignJob.stage, CampaignJob.position)
            .join(CampaignJob, CampaignJob.job_id == Job.id)
            .where(CampaignJob.campaign_id == campaign_id)
            .order_by(CampaignJob.position, CampaignJob.stage.desc())
        )
        with self.db.read() as connection:
            load_campaign(connection, tenant_id, campaign_id)
            rows = connection.execute(query).all()
            metrics = _load_metrics(connection, campaign_id)
        return [
            CampaignEntry(row.stage, row.position, JobRecord.from_row(row), tuple(metrics[row.id]))
            for row in rows
        ]

    def count(self) -> dict[CampaignState, int]:
        """Number of campaigns in each state, over all tenants."""
        shown = display_state().label("shown")
        with self.db.read() as connection:
            rows = connection.execute(select(shown, func.count()).group_by(shown))
            counts = {row[0]: row[1] for row in rows}
        return {state: counts.get(state.value, 0) for state in CampaignState}


def display_state() -> ColumnElement[str]:
    """SQL expression for the `CampaignState` of a row of `campaigns`."""
    jobs = (
        select(CampaignJob.job_id)
        .join(Job, Job.id == CampaignJob.job_id)
        .where(CampaignJob.campaign_id == Campaign.id)
        .correlate(Campaign)
    )
    active = jobs.where(Job.state.not_in([state.value for state in TERMINAL])).exists()
    unapproved = and_(Campaign.dry_run, Campaign.approved_at.is_(None))
    return case(
        (Campaign.state != CampaignDbState.OPEN.value, Campaign.state),
        (and_(active, unapproved), CampaignState.CHECKING.value),
        (active, CampaignState.CONVERTING.value),
        (and_(unapproved, jobs.exists()), CampaignState.AWAITING_APPROVAL.value),
        else_=CampaignState.FINISHED.value,
    )


def load_campaign(connection: Connection, tenant_id: str, campaign_id: str) -> CampaignRecord:
    """One campaign. Raises NotFound."""
    row = None
    if is_valid_id(campaign_id):
        row = connection.execute(_select_campaigns(tenant_id).where(Campaign.id == campaign_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such campaign.", hint="GET /campaigns lists yours.")
    return _attach_tallies(connection, [row])[0]


def _select_campaigns(tenant_id: str) -> Select[Any]:
    query = select(Campaign.__table__, display_state().label("shown"))
    return query.where(Campaign.tenant_id == tenant_id)


def _attach_tallies(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[CampaignRecord, ...]:
    records = [_to_record(row) for row in rows]
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


def _to_record(row: Row[Any]) -> CampaignRecord:
    values = row._mapping
    names = [name for name in CampaignRecord.__slots__ if name not in ("state", "tallies")]
    return CampaignRecord(state=CampaignState(row.shown), **{name: values[name] for name in names})


def _load_metrics(connection: Connection, campaign_id: str) -> dict[str, list[MetricRow]]:
    """Job id → the metrics of the transferred adapter and of the target alone."""
    query = (
        select(EvaluationMetric.job_id, *_METRIC_COLUMNS)
        .join(CampaignJob, CampaignJob.job_id == EvaluationMetric.job_id)
        .where(CampaignJob.campaign_id == campaign_id, EvaluationMetric.subject.in_(_REPORTED_SUBJECTS))
        .order_by(EvaluationMetric.job_id, EvaluationMetric.position)
    )
    metrics: dict[str, list[MetricRow]] = defaultdict(list)
    for job_id, *values in connection.execute(query):
        metrics[job_id].append(MetricRow(*values))
    return metrics
