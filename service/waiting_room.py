"""Where requests wait for jobs: any number of them, woken by one thread that listens to Redis."""

import contextlib
import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from redis import Redis
from redis.exceptions import RedisError

from jobs.store import CHANGED

_log = structlog.get_logger(__name__)

#: How late a guest may be told that its time is over.
_SLICE_SECONDS = 0.2
_RETRY_SECONDS = 0.5
#: Jobs whose last change is remembered, for guests that have read them and are about to sit down.
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Wait:
    """What a request waits for.

    Attributes:
        key: Of the job's record.
        ticket: From the room, taken before the job was read.
        deadline: When it waits no longer, in the seconds of `time.monotonic`.
        revision: The job's revision that the client has.
    """

    key: str
    ticket: int
    deadline: float
    revision: int = 0


@dataclass(order=True)
class _Guest:
    deadline: float
    number: int
    key: str = field(compare=False)
    wake: Callable[[], None] = field(compare=False)


class Room:
    """Tells guests, once each, that their job has changed, that it may have, or the time is over.

    Whatever changes in a job is published by the script that changes it. A guest takes a ticket,
    reads the job and sits down with the ticket; if the job has changed since, it is not let in.
    While Redis is away guests stay, and all are woken when it is back.

    Args:
        redis: A connection pool; the thread takes a connection of it for good.
        seats: How many guests there may be; whoever brings them looks at `has_seat`.

    Attributes:
        guests: How many there are.
    """

    guests: int

    def __init__(self, redis: Redis, seats: int) -> None:
        self._redis = redis
        self._seats = seats
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._by_key: dict[str, dict[int, _Guest]] = {}
        self._deadlines: list[_Guest] = []
        self.guests = 0
        self._changes = 0
        self._last_change: OrderedDict[str, int] = OrderedDict()
        #: What a ticket at or below it has missed is not known.
        self._unknown_until = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_seat(self) -> bool:
        """Whether one more guest may come."""
        return self.guests < self._seats and not self._closing.is_set()

    @property
    def is_closing(self) -> bool:
        """Whether nobody is to wait any more."""
        return self._closing.is_set()

    def ticket(self) -> int:
        """Give a ticket: what changes from now on is known to whoever sits down with it."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="room", daemon=True)
                self._thread.start()
            return self._changes

    def sit_down(self, wait: Wait, wake: Callable[[], None]) -> Callable[[], object] | None:
        """Wait for a job.

        Args:
            wait: For what, and how long.
            wake: Called once, from the room's thread, when there is a reason to look again.

        Returns:
            What a guest calls who leaves early, after which it is not woken; None where the job may
            have changed since the ticket, and where there is no seat.
        """
        with self._lock:
            changed_at = self._last_change.get(wait.key, 0)
            if wait.ticket < max(changed_at, self._unknown_until) or not self.has_seat:
                return None
            guest = _Guest(wait.deadline, next(self._numbers), wait.key, wake)
            self._by_key.setdefault(wait.key, {})[guest.number] = guest
            heapq.heappush(self._deadlines, guest)
            self.guests += 1
        return lambda: self._leave(guest)

    def block(self, wait: Wait) -> None:
        """Wait for a job in this thread: for servers that cannot wait without one."""
        woken = threading.Event()
        leave = self.sit_down(wait, woken.set)
        if leave is not None:
            woken.wait(max(0.0, wait.deadline - time.monotonic()))
            leave()

    def close(self) -> None:
        """Send every guest away, and let nobody in any more."""
        self._closing.set()
        self._wake_all()
        if self._thread is not None:
            self._thread.join()

    def _leave(self, guest: _Guest) -> bool:
        """Take a guest out, and tell whether it was there."""
        with self._lock:
            others = self._by_key.get(guest.key, {})
            was_there = others.pop(guest.number, None) is not None
            if was_there:
                self.guests -= 1
                if not others:
                    del self._by_key[guest.key]
            return was_there

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._redis.pubsub()) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(CHANGED)
                    while not self._closing.is_set():
                        self._hear(channel.get_message(timeout=_SLICE_SECONDS))
                        self._wake_overdue()
            except RedisError as error:
                _log.warning("room_deaf", error=str(error))
                self._wake_overdue()
                self._closing.wait(_RETRY_SECONDS)

    def _hear(self, message: dict[str, str] | None) -> None:
        if message is None:
            return
        if message["type"] == "subscribe":
            # What was published until now was not heard.
            self._wake_all()
            return
        key = message["data"]
        with self._lock:
            self._changes += 1
            self._last_change[key] = self._changes
            self._last_change.move_to_end(key)
            if len(self._last_change) > _MOST_REMEMBERED:
                _, self._unknown_until = self._last_change.popitem(last=False)
            guests = list(self._by_key.get(key, {}).values())
        self._wake(guests)

    def _wake_all(self) -> None:
        with self._lock:
            self._changes += 1
            self._unknown_until = self._changes
            guests = [guest for others in self._by_key.values() for guest in others.values()]
        self._wake(guests)

    def _wake_overdue(self) -> None:
        now = time.monotonic()
        overdue = []
        with self._lock:
            while self._deadlines and self._deadlines[0].deadline <= now:
                overdue.append(heapq.heappop(self._deadlines))
        self._wake(overdue)

    def _wake(self, guests: list[_Guest]) -> None:
        for guest in guests:
            if self._leave(guest):
                guest.wake()
