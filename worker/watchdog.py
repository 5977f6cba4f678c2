"""End a consumer that takes no doorbells although some wait, so that it is started again.

Where Redis dies while a task runs, the task's message cannot be acknowledged. The consumer then
counts it as unfinished for ever and, with a prefetch of one, takes no other; it says so in one line
of the log and looks alive (celery#8030 and its successors). It holds no job by then, so nothing is
lost with it.
"""

import os
import threading
import time

import structlog
from celery.worker import state
from redis import Redis
from redis.exceptions import RedisError

from jobs.queue import waiting_rings

_log = structlog.get_logger(__name__)

#: An idle consumer takes a doorbell within milliseconds.
STALL_SECONDS = 5.0
_LOOK_SECONDS = 0.5


class Watchdog:
    """Watches this process's consumer until stopped.

    Args:
        redis: A connection to the broker's database.
        queue: The Celery queue that the consumer listens to.
        stall_seconds: How long doorbells may wait for a consumer that is idle.
    """

    def __init__(self, redis: Redis, queue: str, stall_seconds: float = STALL_SECONDS) -> None:
        self._redis = redis
        self._queue = queue
        self._stall_seconds = stall_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        taken, well_at = -1, time.monotonic()
        while not self._stop.wait(_LOOK_SECONDS):
            now = sum(state.total_count.values())
            if now != taken or state.reserved_requests or not self._doorbells_wait():
                taken, well_at = now, time.monotonic()
            elif time.monotonic() - well_at > self._stall_seconds:
                _log.error("consumer_stalled", seconds=self._stall_seconds)
                # Not politely: whoever does not hear doorbells may not hear that either.
                os._exit(1)

    def _doorbells_wait(self) -> bool:
        try:
            return waiting_rings(self._redis, self._queue) > 0
        except RedisError:
            return False
