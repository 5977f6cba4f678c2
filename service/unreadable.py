"""The answer to what is no HTTP request: a problem document, as the application gives them."""

import socket
import uuid

import structlog
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]

from jobs.problems import Problem
from service.problems import PROBLEM_JSON, document

#: gunicorn's own upper bound.
MAX_LINE_BYTES = 8190
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8190

_REASONS = {400: "Bad Request", 414: "URI Too Long", 431: "Request Header Fields Too Large"}

_log = structlog.get_logger(__name__)


def refuse(client: socket.socket, error: ParseException) -> None:
    """Answer a request that could not be read.

    Args:
        client: The socket; closed afterwards by the caller.
        error: What was wrong.
    """
    request_id = uuid.uuid4().hex
    problem = _problem_of(error)
    _log.info("unreadable", request_id=request_id, code=problem.code, error=str(error))
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
