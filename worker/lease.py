"""Hold a job: renew its lease from a thread, tell its progress, learn what must stop it.

The thread goes on while the attempt's own thread waits, hashes or verifies, so a large artifact
does not cost the lease.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

import structlog
from redis.exceptions import RedisError

from jobs.job import Progress
from jobs.store import JobStore

_log = structlog.get_logger(__name__)

Verdict = Literal["cancelled", "lost"]


class Lease:
    """A claimed job's lease, renewed while the block runs.

    Args:
        store: The job store.
        job_id: The job.
        token: The fencing token of the claim.
        lease_seconds: How long the store lets a holder be silent.
        renew_seconds: How often to renew.
        is_cancelled: Whether the disk knows of a cancel: Redis forgets its last second when it is
            killed, and may be away.
    """

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        token: int,
        *,
        lease_seconds: float,
        renew_seconds: float,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._token = token
        # Given up before the store would give it away, so that two runners never overlap.
        self._silence_limit = lease_seconds * 2 / 3
        self._renew_seconds = renew_seconds
        self._is_cancelled = is_cancelled
        self._progress: Progress | None = None
        self._verdict: Verdict | None = None
        self._renewed_at = time.monotonic()
        self._stop = threading.Event()
        self._reading, self._writing = os.pipe()
        self._thread = threading.Thread(target=self._loop, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def fileno(self) -> int:
        """Give a descriptor that becomes readable when there is a verdict."""
        return self._reading

    @property
    def verdict(self) -> Verdict | None:
        """Why the attempt must stop at once, or None while it may go on.

        `cancelled`: the client asked for it. `lost`: the job may be another worker's by now, or
        soon, because the store was not reached for so long; a call to it can hang for longer.
        """
        if self._verdict is None and self._silent_seconds() > self._silence_limit:
            return "lost"
        return self._verdict

    def tell(self, progress: Progress) -> None:
        """Show a progress with the next renewal."""
        self._progress = progress

    def _loop(self) -> None:
        while self._verdict is None and not self._stop.wait(self._renew_seconds):
            asked_at = time.monotonic()
            if self._is_cancelled():
                self._decide("cancelled")
                return
            try:
                renewal = self._store.renew(self._job_id, self._token, self._progress)
            except RedisError as error:
                silent_seconds = self._silent_seconds()
                _log.warning("renew_failed", silent_seconds=silent_seconds, error=str(error))
                if silent_seconds > self._silence_limit:
                    self._decide("lost")
                continue
            self._renewed_at = asked_at
            if not renewal.held:
                self._decide("lost")
            elif renewal.cancel_requested:
                self._decide("cancelled")

    def _silent_seconds(self) -> float:
        return time.monotonic() - self._renewed_at

    def _decide(self, verdict: Verdict) -> None:
        self._verdict = verdict
        os.write(self._writing, b"!")
