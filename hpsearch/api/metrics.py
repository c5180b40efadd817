"""Figures for Prometheus: of the requests, counted here; of the domain, read from SQL when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch.api.elsewhere import METHODS
from hpsearch.storage import Database
from hpsearch.storage.figures import Figures, figures

HELD_SECONDS = 10.0
"""Figures of the domain are at most so old: several scrapers together cost no more than one."""


class Metrics:
    """The registry of one application."""

    def __init__(self, database: Database, webhooks: Collection[str] = ()) -> None:
        """Begin counting; of webhooks, those that this process tells are published."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody asks when a series began
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "hpsearch_http_requests", "Requests by method, route and status.", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "hpsearch_http_request_seconds", "Until the answer's first byte.", ["method", "route"],
            registry=self._registry, buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip
        self._registry.register(_Domain(database, webhooks))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class _Domain:
    """What the tables say."""

    def __init__(self, database: Database, webhooks: Collection[str]) -> None:
        self._database, self._webhooks = database, webhooks
        self._read_at = -HELD_SECONDS
        self._figures: Figures

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not read the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The figures as gauges."""
        if time.monotonic() - self._read_at >= HELD_SECONDS:
            self._figures, self._read_at = figures(self._database), time.monotonic()
        known = self._figures
        yield _gauge("hpsearch_studies", "Studies by state.", "state", known.studies)
        yield _gauge("hpsearch_trials", "Trials of all stored studies by state.", "state", known.trials)
        yield _gauge("hpsearch_failures", "Failed trials of all stored studies by reason.", "failure", known.failures)
        yield _gauge("hpsearch_cohort_size", "Trials that train on a device now.", "device", known.cohorts)
        yield _gauge("hpsearch_lease_age_seconds", "Since the runner of a study was heard.", "study", known.lease_ages)
        yield _gauge("hpsearch_study_held", "Trials that a running study holds devices for.", "study", known.held)
        yield _gauge("hpsearch_study_share", "Trials that a running study may hold.", "study", known.shares)
        told = {name: failed for name, failed in known.webhooks.items() if name in self._webhooks}
        yield _gauge("hpsearch_webhook_attempts", "Failed so far, for the event in turn.", "webhook", told)
        yield _gauge("hpsearch_devices_set_aside", "Failing what others train.", "study", known.set_aside)
        queue = "How long the study that waits longest has waited."
        yield GaugeMetricFamily("hpsearch_queue_age_seconds", queue, value=known.queue_age)
        tokens = "Training tokens of all stored trials that have ended."
        yield GaugeMetricFamily("hpsearch_tokens", tokens, value=known.tokens)
        seconds = "Device seconds of all stored trials that have ended."
        yield GaugeMetricFamily("hpsearch_device_seconds", seconds, value=known.device_seconds)


def _gauge(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class Measured:
    """Counts requests by the route that answered: a path or a method of a client's invention makes no new series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note the answer's status."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, is_noted = time.monotonic(), False

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(message["status"])
            await send(message)

        def note(status: int) -> None:
            nonlocal is_noted
            is_noted = True
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(method, route).observe(time.monotonic() - began)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if not is_noted:  # its answer, a 500, is made further out
                note(500)
            raise
