"""Counters and gauges for Prometheus."""

import time
from collections.abc import Iterator

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from redis.exceptions import RedisError

from jobs.tenants import Tenants

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A long poll and a big upload are slow on purpose, so the scale reaches far.
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800)


class Metrics:
    """What the service counts, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "modelpress_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "modelpress_http_request_seconds",
            "Time until the answer began.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(self, tenants: Tenants) -> bytes:
        """Give everything in Prometheus' text format, the queue as Redis has it now."""
        queue = CollectorRegistry()
        queue.register(_Queue(tenants))
        return generate_latest(self._registry) + generate_latest(queue)


class _Queue:
    """Reads the gauges from Redis when asked, so that they are never stale."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; without Redis only the one that says so."""
        try:
            counts = [stores.jobs.counts() for stores in self._tenants.every()]
        except RedisError:
            yield GaugeMetricFamily("modelpress_redis_up", "Whether Redis answered.", value=0)
            return
        yield GaugeMetricFamily("modelpress_redis_up", "Whether Redis answered.", value=1)
        jobs = GaugeMetricFamily("modelpress_jobs", "Jobs that have not ended.", labels=["state"])
        for state in ("queued", "running"):
            jobs.add_metric([state], sum(count[state] for count in counts))
        yield jobs


def install(app: Flask) -> None:
    """Count every request of an application.

    Args:
        app: Its parts are in place.
    """
    app.before_request(_start)
    app.after_request(_count)


def _start() -> None:
    g.started = time.perf_counter()


def _count(response: Response) -> Response:
    from service.parts import parts  # noqa: PLC0415 - parts holds a Metrics

    # An address that does not exist is a client's invention: one label for all of them.
    route = request.url_rule.rule if request.url_rule else "(none)"
    seconds = time.perf_counter() - g.started
    parts().metrics.observe(request.method, route, response.status_code, seconds)
    return response
