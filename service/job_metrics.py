"""Metrics of jobs, workers and the disk, read from where they are kept when somebody asks."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from redis.exceptions import RedisError

from jobs.clock import now_ms_of
from jobs.machine import workers
from jobs.tally import PEAK_BOUNDS_BYTES, Tally, read_tally
from jobs.tenants import Tenants


class JobMetrics:
    """Reads the figures anew for each question, so that they are never stale.

    Args:
        tenants: The stores of all.
        data_dir: On the disk whose room is told.
    """

    def __init__(self, tenants: Tenants, data_dir: Path) -> None:
        self._tenants = tenants
        self._data_dir = data_dir

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; without Redis only those that need none, and the one that says so."""
        disk = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily(
            "modelpress_disk_free_bytes", "Free bytes of the data folder's disk.", disk.free
        )
        yield GaugeMetricFamily(
            "modelpress_disk_size_bytes", "Bytes of the data folder's disk.", disk.total
        )
        try:
            found = [*self._queue(), *_ended(read_tally(self._tenants.redis))]
        except RedisError:
            yield GaugeMetricFamily("modelpress_redis_up", "Whether Redis answered.", 0)
            return
        yield GaugeMetricFamily("modelpress_redis_up", "Whether Redis answered.", 1)
        yield from found

    def _queue(self) -> Iterator[Metric]:
        redis = self._tenants.redis
        stores = [stores.jobs for stores in self._tenants.every()]
        counts = [jobs.counts() for jobs in stores]
        gauge = GaugeMetricFamily("modelpress_jobs", "Jobs that have not ended.", labels=["state"])
        for state in ("queued", "running"):
            gauge.add_metric([state], sum(count[state] for count in counts))
        yield gauge
        oldest = min(filter(None, (jobs.waits_since_ms() for jobs in stores)), default=None)
        waited = 0 if oldest is None else max(0, now_ms_of(redis) - oldest) / 1000
        yield GaugeMetricFamily(
            "modelpress_oldest_queued_seconds", "How long the first in line has waited.", waited
        )
        yield GaugeMetricFamily("modelpress_workers", "Workers that live.", len(workers(redis)))


def _ended(tally: Tally) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "modelpress_jobs_ended", "Jobs that ended, by problem code.", labels=["state", "code"]
    )
    for key, times in sorted(tally.of("ended").items()):
        ended.add_metric(key.split("|"), times)
    yield ended
    runs = tally.one("runs")
    for name, about in (
        ("queue_seconds", "Seconds from a job's submit to its first claim."),
        ("run_seconds", "Seconds from a job's first claim to its end."),
    ):
        yield SummaryMetricFamily(f"modelpress_job_{name}", about, int(runs), tally.one(name))
    steps = SummaryMetricFamily(
        "modelpress_step_seconds", "Seconds of a step's own work.", labels=["op", "method"]
    )
    for key, seconds in sorted(tally.of("step_seconds").items()):
        steps.add_metric(key.split("|"), int(tally.of("step_runs").get(key, 0)), seconds)
    yield steps
    for name, about in (
        ("model_bytes", "Bytes of the models that were compressed."),
        ("artifact_bytes", "Bytes of what became of them."),
    ):
        yield CounterMetricFamily(f"modelpress_{name}", about, tally.one(name))
    yield _peaks(tally)


def _peaks(tally: Tally) -> Metric:
    runs = tally.of("peak_runs")
    below, buckets = 0.0, []
    for bound in (*map(str, PEAK_BOUNDS_BYTES), "+Inf"):
        below += runs.get(bound, 0)
        buckets.append((bound, below))
    histogram = HistogramMetricFamily(
        "modelpress_job_peak_memory_bytes", "Most that a job's processes held together."
    )
    histogram.add_metric([], buckets, tally.one("peak_bytes"))
    return histogram
