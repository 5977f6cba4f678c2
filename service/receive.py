"""A request's body as a stream of big pieces, counted, limited and checked against its digests.

gunicorn hands out a body that was cut off without an error, so the bytes are counted here: a cut
upload is never taken for a whole one.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol, cast

import blake3
from flask import Request
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.datastructures import Headers

from jobs.problems import Problem

CHUNK_BYTES = 1024**2
#: For JSON bodies, recipes and labels: text that people write.
MAX_TEXT_BYTES = 1024**2

_DIGEST_MEMBER = re.compile(r"([a-z0-9*_.-]+)=:([A-Za-z0-9+/]*={0,2}):")


class _Hasher(Protocol):
    def update(self, data: Any, /) -> Any: ...  # noqa: ANN401 - hashlib and blake3 differ here
    def digest(self) -> bytes: ...


_HASHERS: dict[str, Callable[[], _Hasher]] = {
    "sha-256": hashlib.sha256,
    "sha-512": hashlib.sha512,
    "blake3": blake3.blake3,
}


class Body:
    """The body of one request.

    Args:
        request: The request; neither its form nor its JSON was touched.
        limit: The largest body, in bytes.

    Raises:
        Problem: `too_large` where the announced length is past the limit, `malformed_request`
            where a digest header cannot be read.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self.announced = request.content_length
        self._limit = limit
        if self.announced is not None and self.announced > limit:
            raise _too_large(limit)
        self._stream = cast("IO[bytes]", request.environ["wsgi.input"])
        self._is_chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        self._expected = _announced_digests(request.headers)

    @property
    def is_empty(self) -> bool:
        """Whether the request announces no bytes."""
        return not self.announced and not self._is_chunked

    def chunks(self) -> Iterator[bytes]:
        """Read the body once.

        Yields:
            Pieces of at most 1 MiB. When the last was taken, the body was whole: as long as its
            Content-Length says, and with the digests that its headers name.

        Raises:
            Problem: `upload_truncated`, `too_large` or `digest_mismatch`.
        """
        hashers = [(name, _HASHERS[name](), want) for name, want in self._expected]
        received = 0
        while chunk := self._read(received):
            received += len(chunk)
            if received > self._limit:
                raise _too_large(self._limit)
            for _, hasher, _ in hashers:
                hasher.update(chunk)
            yield chunk
        if self.announced is not None and received < self.announced:
            raise _truncated(f"{received} of {self.announced} bytes arrived.")
        for name, hasher, want in hashers:
            _compare(name, hasher, want)

    def read(self) -> bytes:
        """Read the whole of a body that has a small limit."""
        return b"".join(self.chunks())

    def _read(self, received: int) -> bytes:
        if self.announced is not None:
            wanted = min(CHUNK_BYTES, self.announced - received)
        else:
            # A body that is neither measured nor chunked does not exist.
            wanted = CHUNK_BYTES if self._is_chunked else 0
        if not wanted:
            return b""
        try:
            return self._stream.read(wanted)
        except (OSError, ParseException) as error:
            # All that gunicorn says about a connection that broke off or a chunk that is none.
            raise _truncated(f"{received} bytes arrived; then the connection failed.") from error


def json_of(body: Body) -> Any:  # noqa: ANN401 - whatever the client sent
    """Read a JSON body.

    Args:
        body: The body, of a small limit.

    Returns:
        Its plain values.

    Raises:
        Problem: `malformed_request`, or what `Body.chunks` raises.
    """
    try:
        return json.loads(body.read(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Problem("malformed_request", f"The body is not JSON: {error}.") from error


def gather(pieces: Iterable[bytes | memoryview], limit: int, what: str) -> bytes:
    """Collect a text that people write.

    Args:
        pieces: Its bytes.
        limit: The most bytes it may have.
        what: What it is called in the problem.

    Returns:
        All of it.

    Raises:
        Problem: `too_large`.
    """
    collected = bytearray()
    for piece in pieces:
        collected += piece
        if len(collected) > limit:
            raise Problem("too_large", f"The {what} is larger than {limit} bytes.")
    return bytes(collected)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"The body is larger than the limit of {limit} bytes.")


def _truncated(detail: str) -> Problem:
    return Problem("upload_truncated", f"{detail} Nothing was kept; send it again.")


def _announced_digests(headers: Headers) -> list[tuple[str, bytes]]:
    expected = []
    for header in ("Content-Digest", "Repr-Digest"):
        for member in filter(None, (m.strip() for m in headers.get(header, "").split(","))):
            match = _DIGEST_MEMBER.fullmatch(member)
            if match is None:
                raise _unreadable(header, member)
            try:
                want = base64.b64decode(match[2], validate=True)
            except binascii.Error as error:
                raise _unreadable(header, member) from error
            # RFC 9530: algorithms that are not known are passed over.
            if match[1] in _HASHERS:
                expected.append((match[1], want))
    return expected


def _unreadable(header: str, member: str) -> Problem:
    return Problem(
        "malformed_request",
        f"{header}: {member[:100]!r} is not of the form sha-256=:BASE64: of RFC 9530.",
    )


def _compare(name: str, hasher: _Hasher, want: bytes) -> None:
    got = hasher.digest()
    if got != want:
        shown = base64.b64encode(got).decode()
        raise Problem(
            "digest_mismatch", f"The bytes that arrived have {name}=:{shown}:. Nothing was kept."
        )
