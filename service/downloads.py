"""A download: whole or one range, with validators, in constant memory, by sendfile where it can."""

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import quote

from flask import Request, Response

from jobs.problems import Problem
from service.segments import CHUNK_BYTES, FileSegment, Segment, read_segments, size_of


@dataclass(frozen=True)
class Download:
    """Something to send.

    Attributes:
        segments: Its bytes.
        etag: Names these bytes and no others.
        name: The file's name for the client.
        media_type: What it is.
        sha256: Of the whole, where it is known.
    """

    segments: tuple[Segment, ...]
    etag: str
    name: str
    media_type: str
    sha256: bytes | None = None


def send(request: Request, download: Download) -> Response:
    """Answer with a download, or with the range of it that the client wants.

    Args:
        request: Its validators and its Range count.
        download: What to send.

    Returns:
        200, 206 or 304. More than one range, or a unit that is not bytes, gets the whole.

    Raises:
        Problem: `range_not_satisfiable`.
    """
    if request.if_none_match.contains(download.etag):
        response = Response(status=304)
        response.set_etag(download.etag)
        return response
    total = size_of(download.segments)
    span = _span(request, download.etag, total)
    start, stop = span or (0, total)
    response = Response(status=206 if span else 200, mimetype=download.media_type)
    _describe(response, download)
    if span:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
    if request.method != "HEAD":
        _fill(request, response, download.segments, start, stop - start)
    response.headers["Content-Length"] = str(stop - start)
    return response


def _span(request: Request, etag: str, total: int) -> tuple[int, int] | None:
    wanted = request.range
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    condition = request.if_range
    if "If-Range" in request.headers and (condition is None or condition.etag != etag):
        return None
    span = wanted.range_for_length(total)
    if span is None:
        raise Problem(
            "range_not_satisfiable", f"The file has {total} bytes.", extra={"size": total}
        )
    return span


def _describe(response: Response, download: Download) -> None:
    response.set_etag(download.etag)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Content-Disposition"] = (
        f"attachment; filename*=UTF-8''{quote(download.name, safe='')}"
    )
    if download.sha256 is not None:
        response.headers["Repr-Digest"] = f"sha-256=:{b64encode(download.sha256).decode()}:"


def _fill(
    request: Request, response: Response, segments: tuple[Segment, ...], start: int, length: int
) -> None:
    wrapper = request.environ.get("wsgi.file_wrapper")
    [only, *others] = segments
    if wrapper is not None and isinstance(only, FileSegment) and not others and length:
        # PEP 3333: the file is sent from where it stands, and no further than Content-Length. That
        # lets the kernel copy ranges too.
        file = only.path.open("rb")
        file.seek(start)
        response.response = wrapper(file, CHUNK_BYTES)
    else:
        response.response = read_segments(segments, start, length)
    response.direct_passthrough = True
