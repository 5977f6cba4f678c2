"""Everything that goes wrong, as RFC 9457 ``application/problem+json``."""

import errno
import json

import structlog
from flask import Flask, Response, g
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException

from jobs.problems import Problem

PROBLEM_JSON = "application/problem+json"
#: When to come back after a failure that passes.
RETRY_SECONDS = 5

_CODE_BY_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "rate_limited",
}

_log = structlog.get_logger(__name__)


def install(app: Flask) -> None:
    """Turn every error of an application into a problem document.

    Args:
        app: The application.
    """
    app.register_error_handler(Problem, answer)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(RedisError, _from_redis)
    app.register_error_handler(OSError, _from_os)
    app.register_error_handler(Exception, _from_unexpected)


def answer(problem: Problem) -> Response:
    """Render a problem.

    Args:
        problem: What went wrong.

    Returns:
        The response, with the request's id as `instance`.
    """
    body = document(problem, g.request_id)
    response = Response(body, status=problem.status, mimetype=PROBLEM_JSON)
    if "size" in problem.extra:
        # RFC 9110: a 416 tells how long the file is.
        response.headers["Content-Range"] = f"bytes */{problem.extra['size']}"
    if problem.status == 401:
        # RFC 6750: what was wrong with a key is told only to who sent one.
        error = ' error="invalid_token"' if problem.code == "key_invalid" else ""
        response.headers["WWW-Authenticate"] = f"Bearer{error}"
    if problem.status in (429, 503, 507):
        seconds = problem.extra.get("retry_after_seconds", RETRY_SECONDS)
        response.headers["Retry-After"] = str(seconds)
    return response


def document(problem: Problem, request_id: str) -> str:
    """Write a problem document.

    Args:
        problem: What went wrong.
        request_id: The request's id, which the logs have too.

    Returns:
        JSON.
    """
    return json.dumps({**problem.to_dict(), "instance": f"urn:request:{request_id}"})


def _from_http(error: HTTPException) -> Response:
    status = error.code or 500
    fallback = "internal_error" if status >= 500 else "malformed_request"
    code = _CODE_BY_STATUS.get(status, fallback)
    response = answer(Problem(code, error.description or "The request was refused."))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _from_redis(error: RedisError) -> Response:
    _log.warning("store_unavailable", request_id=g.request_id, error=str(error))
    return answer(
        Problem("store_unavailable", "The job store does not answer. Nothing was changed by us.")
    )


def _from_os(error: OSError) -> Response:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _log.error("storage_full", request_id=g.request_id, error=str(error))
        return answer(Problem("storage_full", "The service's disk is full; nothing was kept."))
    return _from_unexpected(error)


def _from_unexpected(error: Exception) -> Response:
    _log.error("unexpected", request_id=g.request_id, exc_info=error)
    detail = f"The service failed and wrote down why, as request {g.request_id}."
    return answer(Problem("internal_error", detail))
