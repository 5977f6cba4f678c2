"""What clients were told, for the end: every answer that must still be true."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos.plan import Wish

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class End:
    """How a job ended, as its document says.

    Attributes:
        state: A terminal state.
        finished_at: When.
        digest: Of its artifact.
        failure: The code of its failure.
    """

    state: str
    finished_at: str
    digest: str | None
    failure: str | None


def end_of(document: dict[str, Any]) -> End | None:
    """Read a job's end from its document, or None where it has not ended."""
    if document["state"] not in TERMINAL:
        return None
    artifact, failure = document["artifact"], document["failure"]
    return End(
        document["state"],
        document["finished_at"],
        artifact["digest"] if artifact else None,
        failure["code"] if failure else None,
    )


@dataclass
class Ledger:
    """What happened, told by many threads at once.

    Attributes:
        accepted: The wish of every job that was accepted, by the job's id.
        ends: How each was first seen to have ended.
        changed: Jobs that had ended, and then had not or otherwise.
        broken: What else must not have happened, in words.
        cancel_seconds: From each accepted cancel to the job's end, by its record.
        cancel_known_seconds: From the first request of each cancel to the client's knowing of the
            end, whatever of service and Redis was away meanwhile.
        counts: Whatever else is counted, by name.
        submitting: How many submits are under way.
    """

    accepted: dict[str, Wish] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    cancel_seconds: list[float] = field(default_factory=list)
    cancel_known_seconds: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    submitting: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self, job_id: str, wish: Wish) -> None:
        """A job was accepted."""
        with self._lock:
            if job_id in self.accepted:
                self.broken.append(f"{job_id} was made of two wishes")
            self.accepted[job_id] = wish

    def see(self, document: dict[str, Any]) -> End | None:
        """Look at a job's document: an end that was seen once must be there for ever.

        Args:
            document: Of an accepted job.

        Returns:
            Its end, or None where it has none.
        """
        job_id, end = document["id"], end_of(document)
        with self._lock:
            known = self.ends.get(job_id)
            if known is None and end is not None:
                self.ends[job_id] = end
            elif known != end:
                self.changed.append(f"{job_id} had ended as {known} and now is {end}")
        return end

    def complain(self, text: str) -> None:
        """Something happened that must not."""
        with self._lock:
            self.broken.append(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}")

    def count(self, name: str, times: int = 1) -> None:
        """Something happened that is counted."""
        with self._lock:
            self.counts[name] += times

    def submit(self, change: int) -> None:
        """A submit begins (1) or ends (-1)."""
        with self._lock:
            self.submitting += change

    def open_ids(self) -> list[str]:
        """Give the accepted jobs that nobody has seen ended."""
        with self._lock:
            return [job_id for job_id in self.accepted if job_id not in self.ends]
