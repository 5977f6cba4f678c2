"""gunicorn's threaded worker, made to last among slow and strange clients.

A thread takes a connection only when the whole head of a request has arrived, so clients that send
theirs byte by byte hold no thread, and not for long a connection. A request that waits for a job
gives its thread back, see `service.parking`. A connection that ends waits for the client's side of
it without holding up the others.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from service.parking import Parking
from service.parts import EXTENSION, Parts
from service.unreadable import refuse
from service.waiting import Parked, Turn, taking

#: How long a client may take to send the head of a request.
HEAD_SECONDS = 10.0
#: A head this long goes to a thread whole or not; the parser's own limits hold there.
_MOST_WAITED_FOR_BYTES = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
#: How long a client may take to read the last answer before its connection is cut (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0
_DRAINED_BYTES = 64 * 1024


class _Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A connection whose end is left to the poller: gunicorn would wait for it in its main loop.

    Args:
        worker: Whose it is.
        *parts: The socket, and the addresses of both sides.

    Attributes:
        request: The last one that was read.
        turn: The next one of the same request, where it has waited.
        asked: When the request arrived.
        parked: What it waits for now.
        leave: Ends the wait.
    """

    request: Any
    turn: Turn | None
    asked: float
    parked: Parked | None
    leave: Callable[[], object] | None

    def __init__(self, worker: "HttpWorker", *parts: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(worker.cfg, *parts)
        self._worker = worker
        self.request = self.turn = self.parked = self.leave = None
        self.asked = 0.0

    def close(self, graceful: bool = False) -> None:
        if graceful:
            self._worker.linger(self)
        else:
            super().close()


class HttpWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """A threaded worker that waits for clients without a thread, and refuses in our own form."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401 - gunicorn has no types
        super().__init__(*parts)
        #: Connections of which our side is closed, in the order in which their time is over.
        self._lingering: deque[_Connection] = deque()

    def run(self) -> None:
        """Serve until told to stop."""
        parts: Parts = self.wsgi.extensions[EXTENSION]
        self._parking = Parking(self, parts.room)
        super().run()

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, and wait for its first request.

        Args:
            listener: Where it came in.
        """
        self._let_in(listener)

    def _let_in(self, listener: socket.socket) -> bool:
        """Accept a connection, and tell whether there may be another."""
        try:
            client, address = listener.accept()
        except ConnectionAbortedError:
            return True
        except BlockingIOError:
            return False
        self.nr_conns += 1
        self._await_head(_Connection(self, client, address, listener.getsockname()))
        return True

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:  # noqa: ANN401
        """Wait for the rest of the next request on a connection that was kept alive.

        Args:
            conn: The connection.
            client: Its socket.
        """
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await_head(conn)

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:  # noqa: ANN401
        """Give a connection to a thread, if the head of its request is there.

        Args:
            conn: The connection.
            client: Its socket.
        """
        if _has_head(client):
            super().on_pending_socket_readable(conn, client)

    def handle(self, conn: Any) -> Any:  # noqa: ANN401 - gunicorn has no types
        """Handle a request, in a thread.

        Args:
            conn: Its connection.

        Returns:
            What `finish_request` is to do with the connection.
        """
        try:
            return super().handle(conn)
        except Parked as parked:
            return parked

    def handle_request(self, req: Any, conn: Any) -> bool:  # noqa: ANN401 - gunicorn has no types
        """Give a request its turn.

        Args:
            req: The request.
            conn: Its connection.

        Returns:
            Whether the connection is kept.
        """
        turn = conn.turn or Turn(time.monotonic())
        conn.request, conn.turn, conn.asked = req, None, turn.asked
        with taking(turn):
            return bool(super().handle_request(req, conn))

    def finish_request(self, conn: Any, fs: "Future[Any]") -> None:  # noqa: ANN401 - as above
        """Park a connection whose request waits, keep it, or end it.

        Args:
            conn: The connection.
            fs: What came of its request.
        """
        if not fs.cancelled() and fs.exception() is None and isinstance(fs.result(), Parked):
            self._parking.park(conn, fs.result())
        else:
            super().finish_request(conn, fs)

    def linger(self, conn: _Connection) -> None:
        """Close our side of a connection, and the rest when the client has, or soon.

        Args:
            conn: The connection; its last answer was sent.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            conn.close()
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + _LINGER_SECONDS
        # gunicorn does not count it any more; it still is an open file.
        self.nr_conns += 1
        self._lingering.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self._drain, conn))

    def murder_pending(self) -> None:
        """Close connections whose time is over: for the head of a request, or for lingering."""
        super().murder_pending()
        now = time.monotonic()
        while self._lingering and self._lingering[0].timeout <= now:
            self._end(self._lingering[0])

    def _drain(self, conn: _Connection, client: socket.socket) -> None:
        try:
            is_over = not client.recv(_DRAINED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            self._end(conn)

    def _end(self, conn: _Connection) -> None:
        self._lingering.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for listener in self.sockets:
            # Who has knocked is let in, and who comes later refused, or comes to our successor.
            while self._let_in(listener):
                pass
            listener.close()
        # A server that stops answers those who wait with what it knows.
        self._parking.close()
        # Nor does it wait long for requests that have not been made.
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _await_head(self, conn: Any) -> None:  # noqa: ANN401 - gunicorn has no types
        conn.sock.setblocking(False)
        # In this order they are closed when their time is over.
        conn.timeout = time.monotonic() + HEAD_SECONDS
        self.pending_conns.append(conn)
        look = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, EVENT_READ, look)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ANN401
        """Answer a request that could not be read.

        Args:
            req: As far as it was read.
            client: The socket; closed afterwards by the caller.
            addr: The client's address.
            exc: What was wrong.
        """
        if isinstance(exc, ParseException):
            refuse(client, exc)
        else:
            # Ours, not the client's: gunicorn writes it down with its traceback.
            super().handle_error(req, client, addr, exc)


def _has_head(client: socket.socket) -> bool:
    """Look whether a request's head has arrived, or never will, without reading it."""
    try:
        waited_for = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        seen = client.recv(_MOST_WAITED_FOR_BYTES, socket.MSG_PEEK)
        # Readable with less than was waited for: the client has hung up.
        is_over = len(seen) < waited_for
        if not is_over and _END_OF_HEAD not in seen and len(seen) < _MOST_WAITED_FOR_BYTES:
            # The kernel tells of the socket again when there is more.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(seen) + 1)
            return False
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    except BlockingIOError:
        return False
    except OSError:
        # The thread that takes it finds out what is wrong.
        return True
    return True
