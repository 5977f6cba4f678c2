"""gunicorn's threaded worker, refusing what is no HTTP request with problem documents too."""

import uuid
from typing import Any

import structlog
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from jobs.problems import Problem
from service.problems import PROBLEM_JSON, document

#: gunicorn's own upper bound.
MAX_LINE_BYTES = 8190
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8190

_REASONS = {400: "Bad Request", 414: "URI Too Long", 431: "Request Header Fields Too Large"}

_log = structlog.get_logger(__name__)


class HttpWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """A threaded worker that answers unreadable requests as the application answers bad ones."""

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
            f"X-Request-Id: {request_id}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
        except OSError:
            _log.info("client_gone", request_id=request_id)


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
