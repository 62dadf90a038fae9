"""Prometheus metrics: requests and notifications of this process, and rows counted at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rebase.errors import Busy
from rebase.store.deliveries import DeliveryRepository
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store


class ReleaseMetrics(Collector):
    """Webhooks, releases and campaigns. Registers itself."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._deliveries = Counter(
            "rebase_webhook_deliveries",
            "Hub webhooks handled, by outcome.",
            ["outcome"],
            registry=registry,
        )
        registry.register(self)

    def record_webhook(self, outcome: str) -> None:
        """Count one webhook delivery: recorded, duplicate, ignored or refused."""
        self._deliveries.labels(outcome).inc()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Empty, so that registration does not need the database."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Counts at the time of the scrape; left out while the database is unavailable."""
        try:
            release_counts, campaigns = self._store.releases.count(), self._store.campaigns.count()
        except Busy:
            return
        releases = GaugeMetricFamily(
            "rebase_releases_seen",
            "Releases that matched a subscription, by how they were found.",
            labels=["by"],
        )
        for source, count in release_counts.items():
            releases.add_metric([source], count)
        states = GaugeMetricFamily("rebase_campaigns", "Campaigns, by state.", labels=["state"])
        for state, count in campaigns.items():
            states.add_metric([state.value], count)
        yield releases
        yield states


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """Has its own registry per app, so that two apps in one process do not collide."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rebase_http_requests",
            "Requests handled.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "rebase_http_request_seconds",
            "Time from the first byte of the request to the last byte of the response.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_JobCollector(store, scheduler))
        self.registry.register(_CallbackCollector(DeliveryRepository(store.db, store.clock)))
        self.releases = ReleaseMetrics(store, self.registry)

    def record_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is a path template, so that clients cannot create new time series."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class _JobCollector(Collector):
    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Empty, so that registration does not need the database."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Current values; those from the database are left out while it is unavailable."""
        state = self._scheduler.state
        yield CounterMetricFamily(
            "rebase_bells_rung", ("Job notifications sent to the broker."), value=state.notified
        )
        yield CounterMetricFamily(
            "rebase_keeper_failures", "Scheduler steps that failed.", value=state.failures
        )
        try:
            pending, active = (
                self._store.outbox.count_pending(),
                self._store.outbox.count_open_jobs_by_state(),
            )
        except Busy:
            return
        yield GaugeMetricFamily(
            "rebase_outbox_rows", ("Job notifications waiting in the outbox."), value=pending
        )
        jobs = GaugeMetricFamily("rebase_jobs_active", "Maximum unfinished jobs, by state.", labels=["state"])
        for name, count in active.items():
            jobs.add_metric([name.value], count)
        yield jobs


class _CallbackCollector(Collector):
    def __init__(self, repository: DeliveryRepository) -> None:
        self._repository = repository

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Empty, so that registration does not need the database."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Stored deliveries by state, and the age of the oldest pending one."""
        try:
            counts = self._repository.count_by_state()
        except Busy:
            return
        deliveries = GaugeMetricFamily(
            "rebase_callback_deliveries", "Stored callbacks, by state.", labels=["state"]
        )
        for name, count in counts.by_state.items():
            deliveries.add_metric([name.value], count)
        yield deliveries
        oldest = counts.oldest_pending
        age = (self._repository.clock() - oldest).total_seconds() if oldest is not None else 0.0
        yield GaugeMetricFamily(
            "rebase_callback_oldest_pending_seconds",
            "Age of the oldest callback waiting for delivery; 0 if there is none.",
            value=max(0.0, age),
        )
