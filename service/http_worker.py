"""gunicorn's threaded worker, made to last among slow and strange clients.

A thread takes a connection only when the whole head of a request has arrived, so clients that send
theirs byte by byte hold no thread, and not for long a connection. A connection that ends waits for
the client's side of it without holding up the others. What is no HTTP request is refused with
problem documents, as the application does.
"""

import socket
import time
import uuid
from collections import deque
from functools import partial
from selectors import EVENT_READ
from typing import Any

import structlog
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from jobs.problems import Problem
from service.problems import PROBLEM_JSON, document

#: gunicorn's own upper bound.
MAX_LINE_BYTES = 8190
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8190

#: How long a client may take to send the head of a request.
HEAD_SECONDS = 10.0
#: A head this long goes to a thread whole or not; the parser's own limits hold there.
_MOST_WAITED_FOR_BYTES = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
#: How long a client may take to read the last answer before its connection is cut (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0
_DRAINED_BYTES = 64 * 1024

_REASONS = {400: "Bad Request", 414: "URI Too Long", 431: "Request Header Fields Too Large"}

_log = structlog.get_logger(__name__)


class _Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A connection whose end is left to the poller: gunicorn would wait for it in its main loop."""

    def __init__(self, worker: "HttpWorker", *parts: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(worker.cfg, *parts)
        self._worker = worker

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

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, and wait for its first request.

        Args:
            listener: Where it came in.
        """
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        self._await_head(_Connection(self, client, address, listener.getsockname()))

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
        # Nor does a server that stops wait long for requests that have not been made.
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
        if not isinstance(exc, ParseException):
            # Ours, not the client's: gunicorn writes it down with its traceback.
            super().handle_error(req, client, addr, exc)
            return
        request_id = uuid.uuid4().hex
        problem = _problem_of(exc)
        _log.info("unreadable", request_id=request_id, code=problem.code, error=str(exc))
        body = document(problem, request_id).encode()
        head = (
            f"HTTP/1.1 {problem.status} {_REASONS[problem.status]}\r\n"
            "Connection: close\r\n"
            f"Content-Type: {PROBLEM_JSON}\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            f"X-Request-Id: {request_id}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
        except OSError:
            _log.info("client_gone", request_id=request_id)


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


def _problem_of(error: ParseException) -> Problem:
    if isinstance(error, LimitRequestLine):
        return Problem(
            "address_too_long", f"The request's first line may have {MAX_LINE_BYTES} bytes."
        )
    if isinstance(error, LimitRequestHeaders):
        return Problem(
            "headers_too_large",
            f"A request may have {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes each.",
        )
    return Problem("malformed_request", f"This is no HTTP request that is served here: {error}.")
