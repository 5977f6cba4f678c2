"""One request to the service: sent, repeated where that can help, and its refusals made exceptions.

Every request of this client may be sent twice without harm: uploads are addressed by their bytes,
submits carry an Idempotency-Key, and the rest reads or asks for a state. So all are retried.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from modelpress.backoff import Backoff
from modelpress.errors import ModelpressError, ProblemError, ServiceUnreachable, UnexpectedAnswer

Value = TypeVar("Value")


class Connection:
    """A service's address and the open connections to it.

    Args:
        url: The service's root, such as ``https://modelpress.example.org``.
        timeout: Seconds without any sign of life after which a request counts as failed.
        backoff: How patiently requests are repeated.
        transport: An httpx transport to send through instead of the network.
        api_key: The API key; None or empty to send none.

    Raises:
        ValueError: The URL is not an http or https one, or the key holds what no key does.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        backoff: Backoff,
        transport: httpx.BaseTransport | None,
        api_key: str | None = None,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url {url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"url {url!r} is not an http:// or https:// one")
        self.url = url
        self.timeout = timeout
        self.backoff = backoff
        self._client = httpx.Client(
            base_url=parsed, timeout=timeout, transport=transport, headers=_authorization(api_key)
        )

    def close(self) -> None:
        """Close the open connections."""
        self._client.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        json: object = None,
        body: Callable[[], Iterator[bytes]] | None = None,
        patience: float = 0.0,
    ) -> httpx.Response:
        """Send a request, up to `backoff.attempts` times, and read the whole answer.

        Args:
            method: The HTTP method.
            path: Where, below the service's root.
            headers: Headers to add.
            params: The query.
            json: A JSON body.
            body: Gives the raw body from its start, anew for each attempt.
            patience: Seconds by which the answer may come later than `timeout` allows.

        Returns:
            An answer of 2xx, or 304.

        Raises:
            ServiceUnreachable: No attempt got an answer from the service.
            ProblemError: The service refused.
            UnexpectedAnswer: It answered with a redirect.
        """
        timeout = httpx.Timeout(self.timeout, read=self.timeout + patience)
        attempt = 0
        while True:
            attempt += 1
            content = body() if body else None
            request = self._client.build_request(
                method, path,
                headers=headers, params=params, json=json, content=content, timeout=timeout,
            )  # fmt: skip
            retry_after = None
            failure: ModelpressError
            try:
                response = self._client.send(request)
            except httpx.RequestError as error:
                failure = self._unreachable(error)
            else:
                if response.status_code < 400:
                    return _expect(response, 200, 201, 202, 204, 304)
                failure = self.refusal(response)
                if not is_passing(failure):
                    raise failure
                retry_after = _retry_after(response)
            if attempt >= self.backoff.attempts:
                raise failure
            self.backoff.pause(attempt, retry_after)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """GET an answer piece by piece, without retries; the caller knows what it already has.

        Args:
            path: Where, below the service's root.
            headers: Headers to add.

        Yields:
            An answer of 200 or 206, whose body has not been read.

        Raises:
            ServiceUnreachable: There was no answer, or it was cut short.
            ProblemError: The service refused.
            UnexpectedAnswer: It answered with another status.
        """
        try:
            with self._client.stream("GET", path, headers=headers) as response:
                if response.status_code >= 400:
                    response.read()
                    raise self.refusal(response)
                yield _expect(response, 200, 206)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def refusal(self, response: httpx.Response) -> ModelpressError:
        """Make the exception of an answer of 400 or more; one of a proxy becomes unreachable."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if isinstance(problem, dict) and "code" in problem:
            return ProblemError(problem, response.status_code)
        if response.status_code in (502, 503, 504):
            return ServiceUnreachable(
                f"{self.url} answered {response.status_code}: the service behind it is not there."
            )
        text = " ".join(response.text.split())[:200]
        detail = f"{response.url} answered {response.status_code}: {text}"
        return ProblemError({"detail": detail}, response.status_code)

    def _unreachable(self, error: httpx.RequestError) -> ServiceUnreachable:
        reason = str(error) or type(error).__name__
        failure = ServiceUnreachable(f"No answer from {self.url}: {reason}.")
        failure.__cause__ = error
        return failure


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        return {}
    if not re.fullmatch(r"[A-Za-z0-9_]+", key):
        # Found here, and not by a library that would show it in its message.
        raise ValueError("the API key holds characters that no key does")
    return {"Authorization": f"Bearer {key}"}


def is_passing(failure: ModelpressError) -> bool:
    """Whether a failure may be over in seconds, so that the same request can be sent again.

    A 409 may be marked as retryable too, but it waits for a job to end, which is for `wait`.
    """
    if isinstance(failure, ProblemError):
        return failure.status in (429, 503) or (failure.retryable and failure.status != 409)
    return isinstance(failure, ServiceUnreachable)


def document(response: httpx.Response) -> dict[str, Any]:
    """Read the JSON object that an answer holds.

    Args:
        response: An answer that was read.

    Returns:
        Its members.

    Raises:
        UnexpectedAnswer: It holds no JSON object.
    """
    try:
        members = response.json()
    except ValueError as error:
        raise UnexpectedAnswer(
            f"{response.url} answered with something that is no JSON."
        ) from error
    if not isinstance(members, dict):
        raise UnexpectedAnswer(f"{response.url} answered with JSON that is no object.")
    return members


def read(response: httpx.Response, reader: Callable[[dict[str, Any]], Value]) -> Value:
    """Read the value that an answer holds.

    Args:
        response: An answer that was read.
        reader: Makes the value of the document.

    Returns:
        What the reader made.

    Raises:
        UnexpectedAnswer: The answer is no JSON object, or not one that the reader understands.
    """
    members = document(response)
    try:
        return reader(members)
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnexpectedAnswer(
            f"{response.url} sent a document of another shape; {reason}."
        ) from error


def _expect(response: httpx.Response, *statuses: int) -> httpx.Response:
    if response.status_code in statuses:
        return response
    towards = response.headers.get("Location")
    hint = f" and points to {towards}; is that the URL to use?" if towards else "."
    raise UnexpectedAnswer(f"{response.url} answered {response.status_code}{hint}")


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
