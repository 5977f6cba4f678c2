"""Streams that pause: their connection is parked, and goes on with the same body later."""

from collections.abc import Iterable, Iterator
from typing import Any

from flask import request

from service.waiting import Parked, Pause, current_turn

_PAUSES = "modelpress.pauses"


def may_pause() -> bool:
    """Say that this request's answer is a stream that pauses, if the server knows how to go on.

    Returns:
        Whether it does.
    """
    is_able = current_turn() is not None
    request.environ[_PAUSES] = is_able
    return is_able


class Stream:
    """A body that pauses.

    Args:
        body: What the application answered with.
        response: The server's, to which the rest of the body is to be written.

    Attributes:
        response: The same.
        is_paused: Whether the body has more to come after a pause; then it is not closed.
    """

    response: Any
    is_paused: bool

    def __init__(self, body: Iterable[bytes], response: Any) -> None:  # noqa: ANN401 - gunicorn's
        self._body = body
        self._pieces = iter(body)
        self.response = response
        self.is_paused = False

    def __iter__(self) -> Iterator[bytes]:
        self.is_paused = False
        for piece in self._pieces:
            if isinstance(piece, Pause):
                self.is_paused = True
                raise StreamParked(piece, self)
            yield piece

    def close(self) -> None:
        """End the body, unless it has only paused."""
        if not self.is_paused:
            self.end()

    def end(self) -> None:
        """End the body."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


class StreamParked(Parked):
    """Raised where a stream pauses.

    Args:
        pause: What it yielded.
        stream: What is to be gone on with.
    """

    def __init__(self, pause: Pause, stream: Stream) -> None:
        super().__init__(pause.wait)
        self.stream = stream


class PausingStreams:
    """Lets the streams of an application pause.

    Args:
        application: Any; only what calls `may_pause` is affected.
    """

    def __init__(self, application: Any) -> None:  # noqa: ANN401 - a WSGI application
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401 - WSGI
        """Answer a request."""
        body = self._application(environ, start_response)
        if not environ.get(_PAUSES):
            return body
        # Only gunicorn has turns, and its start_response is a method of the response.
        return Stream(body, start_response.__self__)
