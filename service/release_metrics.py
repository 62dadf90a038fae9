"""Figures about releases: webhook deliveries of this process, releases seen, campaigns by state."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rebase.errors import Busy
from rebase.store.store import Store


class ReleaseMetrics(Collector):
    """Registers itself."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._deliveries = Counter(
            "rebase_webhook_deliveries",
            "Webhooks that were answered, by outcome.",
            ["outcome"],
            registry=registry,
        )
        registry.register(self)

    def record_webhook(self, outcome: str) -> None:
        """Count one delivery: recorded, duplicate, ignored or refused."""
        self._deliveries.labels(outcome).inc()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing before the first scrape: registering must not need the database."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Counted at the scrape; left out while the database does not answer."""
        try:
            release_counts, campaigns = self._store.releases.count(), self._store.campaigns.count()
        except Busy:
            return
        releases = GaugeMetricFamily(
            "rebase_releases_seen",
            "Releases that some subscription meant, by how they were found.",
            labels=["by"],
        )
        for source, count in release_counts.items():
            releases.add_metric([source], count)
        states = GaugeMetricFamily("rebase_campaigns", "Campaigns, by state.", labels=["state"])
        for state, count in campaigns.items():
            states.add_metric([state.value], count)
        yield releases
        yield states
