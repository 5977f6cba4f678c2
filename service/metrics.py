"""Metrics of requests, and the text in which Prometheus reads all metrics."""

import time

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.job_metrics import JobMetrics
from service.waiting import asked_at
from service.waiting_room import Room

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

        self._waiting = Gauge(
            "modelpress_waiting_requests",
            "Long polls and event streams that wait, without a thread.",
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(self, jobs: JobMetrics, room: Room) -> bytes:
        """Give everything in Prometheus' text format, the jobs as Redis has them now."""
        self._waiting.set(room.guests)
        now = CollectorRegistry()
        now.register(jobs)
        return generate_latest(self._registry) + generate_latest(now)


def install(app: Flask) -> None:
    """Count every request of an application.

    Args:
        app: Its parts are in place.
    """
    app.before_request(_start)
    app.after_request(_count)


def _start() -> None:
    # Of the first time, where the request has waited since.
    g.started = asked_at()


def _count(response: Response) -> Response:
    from service.parts import parts  # noqa: PLC0415 - parts holds a Metrics

    # An address that does not exist is a client's invention: one label for all of them.
    route = request.url_rule.rule if request.url_rule else "(none)"
    seconds = time.monotonic() - g.started
    parts().metrics.observe(request.method, route, response.status_code, seconds)
    return response
