"""Waiting for a job to change: without a thread where the server can do that.

`service.http_worker` gives each request a turn. A request that has to wait ends its turn by raising
`Parked`, or, as a stream that has begun, by yielding a `Pause`, and gets another when the room says
so: the request is handled again from its start, the stream goes on. Other servers have no turns,
and a request waits in its thread.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jobs.job import Job
from jobs.store import JobStore
from service.waiting_room import Room, Wait

#: The longest wait that a client may ask for; proxies give up soon after.
MAX_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Turn:
    """One handling of a request.

    Attributes:
        asked: When the request arrived, in the seconds of `time.monotonic`.
        waited: What it has waited for, where this is not its first turn.
    """

    asked: float
    waited: Wait | None = None


class Parked(BaseException):
    """Raised by a request that waits, up to the server.

    Args:
        wait: For what.
    """

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait)
        self.wait = wait


class Pause(bytes):
    """Yielded by a stream that has nothing to say for now; it has no bytes."""

    wait: Wait

    @classmethod
    def for_wait(cls, wait: Wait) -> "Pause":
        """Make one."""
        pause = cls()
        pause.wait = wait
        return pause


_turn: ContextVar[Turn | None] = ContextVar("turn", default=None)


@contextmanager
def taking(turn: Turn) -> Iterator[None]:
    """Have the block be a request's turn.

    Args:
        turn: Which.
    """
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)


def current_turn() -> Turn | None:
    """Give the turn of the request that is handled, or None where the server has none."""
    return _turn.get()


def is_again() -> bool:
    """Tell whether this request was handled before, up to the point at which it had to wait."""
    turn = _turn.get()
    return turn is not None and turn.waited is not None


def asked_at() -> float:
    """Give when this request arrived, in the seconds of `time.monotonic`."""
    turn = _turn.get()
    return turn.asked if turn else time.monotonic()


def wait_for_change(
    room: Room, store: JobStore, job: Job, known_revision: int, seconds: float
) -> Job | None:
    """Wait until a job differs from what the client knows.

    Args:
        room: Where to wait; where it has no seat the answer comes at once.
        store: The job store.
        job: The job as just read.
        known_revision: The revision that the client has.
        seconds: How long to wait at most.

    Returns:
        The job with another revision or ended, or as it is when the time is over; None where it
        was removed meanwhile.

    Raises:
        Parked: It has to wait, and the server can do that without this thread.
    """
    turn = current_turn()
    deadline = asked_at() + min(seconds, MAX_WAIT_SECONDS)
    if turn and turn.waited:
        known_revision = turn.waited.revision
    while True:
        ticket = room.ticket()
        current = store.get(job.id)
        if current is None or current.revision != known_revision or current.is_terminal:
            return current
        if time.monotonic() >= deadline or not room.has_seat:
            return current
        wait = Wait(store.key(job.id), ticket, deadline, known_revision)
        if turn:
            raise Parked(wait)
        room.block(wait)
