"""Headers that every answer carries, and the request's id."""

import re
import uuid

from flask import Flask, Response, g, request

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: For answers that no browser should treat as a page.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
#: For pages drawn here: their one inline style sheet and inline SVG, no script.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def install(app: Flask) -> None:
    """Give every answer of an application its headers.

    Args:
        app: The application.
    """
    app.before_request(_name_request)
    app.after_request(_complete)


def _name_request() -> None:
    offered = request.headers.get("X-Request-Id", "")
    g.request_id = offered if _SANE_ID.fullmatch(offered) else uuid.uuid4().hex


def _complete(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Content-Security-Policy", _NO_PAGE)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
