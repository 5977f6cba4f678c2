"""Connections whose requests wait: they have no thread until there is something to say.

All of it happens in the main loop of the worker but for the handling itself. Those who are woken
have a part of the threads only: a thousand that waited for one job leave room for everybody else.
"""

import socket
from collections import deque
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ
from typing import Any

import structlog

from service.streams import Stream, StreamParked
from service.waiting import Parked, Turn
from service.waiting_room import Room

#: Of the threads, how many the woken may have at once: one of this many.
_SHARE = 4

_log = structlog.get_logger(__name__)


class Parking:
    """Where a worker leaves connections whose requests wait.

    Args:
        worker: The worker.
        room: Tells when there is a reason to go on.
    """

    def __init__(self, worker: Any, room: Room) -> None:  # noqa: ANN401 - gunicorn has no types
        self._worker = worker
        self._room = room
        self._most_served = max(1, worker.cfg.threads // _SHARE)
        self._served = 0
        self._woken: deque[tuple[Any, Parked]] = deque()

    def close(self) -> None:
        """Have all who wait answered with what is known."""
        self._room.close()

    def park(self, conn: Any, parked: Parked) -> None:  # noqa: ANN401 - as above
        """Wait, without a thread.

        Args:
            conn: The connection.
            parked: What was raised instead of an answer, or instead of the rest of one.
        """
        conn.parked = parked
        self._worker.poller.register(conn.sock, EVENT_READ, partial(self._hear, conn))
        wake = partial(self._worker.method_queue.defer, self._wake, conn, parked)
        conn.leave = self._room.sit_down(parked.wait, wake)
        if conn.leave is None:
            self._wake(conn, parked)

    def _hear(self, conn: Any, client: socket.socket) -> None:  # noqa: ANN401 - as above
        """See what a client does that has nothing to do but wait: most often it hangs up."""
        try:
            is_gone = not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            is_gone = True
        # What it has sent ahead is read after the answer.
        self._worker.poller.unregister(conn.sock)
        if not is_gone:
            return
        conn.leave()
        if isinstance(conn.parked, StreamParked):
            conn.parked.stream.end()
        conn.parked = None
        self._worker.nr_conns -= 1
        conn.close()

    def _wake(self, conn: Any, parked: Parked) -> None:  # noqa: ANN401 - as above
        if conn.parked is not parked:
            # It has gone meanwhile.
            return
        conn.parked = None
        if conn.sock in self._worker.poller.get_map():
            self._worker.poller.unregister(conn.sock)
        self._woken.append((conn, parked))
        self._serve()

    def _serve(self) -> None:
        while self._woken and self._served < self._most_served:
            conn, parked = self._woken.popleft()
            self._served += 1
            future = self._worker.tpool.submit(self._go_on, conn, parked)
            done = partial(self._worker.method_queue.defer, self._finish, conn)
            future.add_done_callback(done)

    def _finish(self, conn: Any, future: "Future[Any]") -> None:  # noqa: ANN401 - as above
        self._served -= 1
        self._worker.finish_request(conn, future)
        self._serve()

    def _go_on(self, conn: Any, parked: Parked) -> Any:  # noqa: ANN401 - as above
        if isinstance(parked, StreamParked):
            return self._write_on(conn, parked.stream)
        conn.turn = Turn(conn.asked, parked.wait)
        conn.parser = _Again(conn)
        return self._worker.handle(conn)

    def _write_on(self, conn: Any, stream: Stream) -> Any:  # noqa: ANN401 - as above
        response = stream.response
        try:
            for piece in stream:
                response.write(piece)
            response.close()
        except Parked as parked:
            return parked
        except OSError:
            _log.debug("client_gone")
            return False
        except Exception:  # noqa: BLE001 - the answer has begun, so nobody can be told
            _log.exception("stream_failed")
            return False
        finally:
            stream.close()
        # gunicorn's own name for it begins with an underscore.
        return self._worker._keepalive_after(conn, not response.should_close())  # noqa: SLF001


class _Again:
    """Stands in for a connection's parser, and gives the request that it gave last."""

    def __init__(self, conn: Any) -> None:  # noqa: ANN401 - as above
        self._conn = conn
        self._parser = conn.parser

    def __next__(self) -> Any:  # noqa: ANN401 - as above
        self._conn.parser = self._parser
        return self._conn.request
