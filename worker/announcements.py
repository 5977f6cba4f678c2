"""What a worker tells the service through Redis, for plans and metrics; no job depends on it."""

import contextlib
import os
import threading

import structlog
from redis import Redis
from redis.exceptions import RedisError

from jobs.levels import publish_levels
from jobs.report import Report
from jobs.tally import add_report
from planning.working_set import MOST_THREADS
from worker.runner_process import TemplateDiedError
from worker.runners import Runners

_log = structlog.get_logger(__name__)


class Announcements:
    """Tells what this worker is and measures; plans and metrics are worse without it.

    Args:
        redis: The store.
        runners: What starts its runners; measured in a thread, as the first of them is slow.
    """

    def __init__(self, redis: Redis, runners: Runners) -> None:
        self._redis = redis
        self._runners = runners
        threading.Thread(target=self._tell_levels, name="announce", daemon=True).start()

    def tell_inspection(self, report: Report) -> None:
        """Tell what asking transformers took, so that plans know, also of a job that fails by it.

        Args:
            report: Of the job.
        """
        if report.memory.inspection_peak_bytes:
            self._publish({"inspection_bytes": report.memory.inspection_peak_bytes})

    def add(self, report: Report) -> None:
        """Add what a job measured that has succeeded to the sums of all.

        Args:
            report: Of the job.
        """
        try:
            add_report(self._redis, report)
        except RedisError as error:
            _log.warning("report_not_added", error=str(error))

    def _tell_levels(self) -> None:
        with contextlib.suppress(TemplateDiedError):
            levels = {
                "idle_bytes": self._runners.idle_bytes(),
                "threads": min(len(os.sched_getaffinity(0)), MOST_THREADS),
                "has_device": int(self._runners.device == "cuda"),
                "has_sandbox": int(self._runners.level != "none"),
            }
            self._publish(levels)

    def _publish(self, levels: dict[str, int]) -> None:
        try:
            publish_levels(self._redis, levels)
        except RedisError as error:
            _log.warning("levels_not_published", error=str(error))
