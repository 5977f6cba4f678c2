"""multipart/form-data read as a stream: one part after the other, in constant memory."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from flask import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jobs.problems import Problem
from service.receive import Body, gather

MAX_PARTS = 16


@dataclass
class Part:
    """One part, valid until the next one is asked for.

    Attributes:
        name: The field's name.
        filename: The file's name as the client gave it, or None for a plain value. Never used as
            a path.
    """

    name: str
    filename: str | None
    _source: "Multipart" = field(repr=False)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the part's bytes, in pieces as big as they arrived."""
        while (piece := self._source.next_event()) is not None:
            if isinstance(piece, memoryview):
                yield piece

    def read(self, limit: int) -> bytes:
        """Give all of a part that should be small.

        Args:
            limit: The most bytes it may have.

        Returns:
            Its bytes.

        Raises:
            Problem: `too_large`.
        """
        return gather(self.pieces(), limit, f"part {self.name!r}")


class Multipart:
    """A multipart body.

    Args:
        request: Its Content-Type is multipart/form-data.
        body: The request's body.

    Raises:
        Problem: `malformed_multipart`: the Content-Type names no usable boundary.
    """

    def __init__(self, request: Request, body: Body) -> None:
        boundary = request.mimetype_params.get("boundary", "")
        if not boundary or not boundary.isascii():
            raise _malformed("the Content-Type names no boundary")
        self._chunks = body.chunks()
        # What the parser found in the chunk just read: a part, its bytes, None for its end.
        self._events: deque[Part | memoryview | None] = deque()
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._parts = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def parts(self) -> Iterator[Part]:
        """Read the body once.

        Yields:
            The parts in their order. What the caller leaves of one is passed over. When the last
            was taken, the body was whole.

        Raises:
            Problem: `malformed_multipart`, or what `Body.chunks` raises.
        """
        while self._more():
            event = self._events.popleft()
            if isinstance(event, Part):
                yield event

    def next_event(self) -> Part | memoryview | None:
        """Give what comes next inside a part; for `Part` alone."""
        if not self._more():
            raise _malformed("the body ends inside a part")
        return self._events.popleft()

    def _more(self) -> bool:
        while not self._events:
            chunk = next(self._chunks, None)
            if chunk is None:
                if not self._ended:
                    raise _malformed("the closing boundary is missing")
                return False
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _malformed(str(error)) from error
        return True

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"there are more than {MAX_PARTS} parts")
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._headers.clear()
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _malformed("a part has no Content-Disposition: form-data with a name")
        filename = options.get(b"filename")
        shown = None if filename is None else filename.decode("utf-8", "replace")
        self._events.append(Part(name.decode("utf-8", "replace"), shown, self))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        self._events.append(None)

    def _on_end(self) -> None:
        self._ended = True


def is_multipart(request: Request) -> bool:
    """Tell whether a request's body is multipart/form-data."""
    return request.mimetype == "multipart/form-data"


def _malformed(reason: str) -> Problem:
    return Problem("malformed_multipart", f"The multipart body cannot be read: {reason}.")
