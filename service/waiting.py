"""Waiting for a job to change, by as many requests at once as there are threads to spare."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.job import Job
from jobs.store import JobStore

#: The longest wait that a client may ask for; proxies give up soon after.
MAX_WAIT_SECONDS = 60
# Between two looks at whether the server wants to stop, and whether the time is over.
_SLICE_SECONDS = 1.0


class Waiters:
    """Counts the requests that hold a thread while they wait.

    Args:
        limit: How many may.
    """

    def __init__(self, limit: int) -> None:
        self._free = threading.Semaphore(limit)
        self.is_closing: Callable[[], bool] = lambda: False

    @contextmanager
    def seat(self) -> Iterator[bool]:
        """Take a seat for the block, if one is free.

        Yields:
            Whether one was free; where not, the request must not wait.
        """
        taken = self._free.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._free.release()


def wait_for_change(
    store: JobStore, waiters: Waiters, job: Job, known_revision: int, seconds: float
) -> Job | None:
    """Wait until a job differs from what the client knows.

    Args:
        store: The job store.
        waiters: Where to take a seat; without one the answer comes at once.
        job: The job as just read.
        known_revision: The revision that the client has.
        seconds: How long to wait at most.

    Returns:
        The job with another revision or ended, or as it is when the time is over; None where it
        was removed meanwhile.
    """
    deadline = time.monotonic() + min(seconds, MAX_WAIT_SECONDS)
    with waiters.seat() as seated:
        after = place_now(store)
        current = store.get(job.id)
        while (
            seated
            and current is not None
            and current.revision == known_revision
            and not current.is_terminal
            and not waiters.is_closing()
            and (left := deadline - time.monotonic()) > 0
        ):
            events = store.events(job.id, after, block_ms=slice_ms(left))
            if events:
                after = events[-1].id
            current = store.get(job.id)
        return current


def place_now(store: JobStore) -> str:
    """Give a place in every event stream that lies just before now, by Redis's own clock."""
    seconds, microseconds = store.redis.time()
    return f"{seconds * 1000 + microseconds // 1000 - 1}-0"


def slice_ms(left_seconds: float) -> int:
    """Give how long to block next, in milliseconds; never 0, which would block for ever."""
    return max(1, int(min(left_seconds, _SLICE_SECONDS) * 1000))
