"""A package on its way to the service, which keeps each sequence of bytes once."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from modelpress.connection import Connection, read
from modelpress.errors import DigestMismatch, ProblemError
from modelpress.packages import Package
from modelpress.values import Dataset, Model

# After the last byte the service still hashes, checks and syncs what may be hundreds of gigabytes.
PATIENCE_SECONDS = 600.0

Uploaded = TypeVar("Uploaded", Model, Dataset)


def upload(
    connection: Connection,
    path: str,
    prefix: str,
    package: Package,
    reader: Callable[[dict[str, Any]], Uploaded],
    on_bytes: Callable[[int, int], None] | None,
) -> Uploaded:
    """Make sure that the service has a package, sending it only where it has not.

    Args:
        connection: The service.
        path: The collection to upload to, such as ``/models``.
        prefix: What its ids begin with.
        package: What to upload.
        reader: Reads the document of an uploaded thing.
        on_bytes: Called with the bytes sent and the bytes in all; not when nothing is sent.

    Returns:
        The uploaded thing; its id names the digest of the package.

    Raises:
        UnusableUpload: A file changed while it was read.
        DigestMismatch: The service received other bytes than were sent.
        ServiceUnreachable: There was no answer.
        ProblemError: The service refused.
        UnexpectedAnswer: The service answered what the contract does not allow.
    """
    identifier = prefix + package.digest()
    headers = {"Accept": "application/json"}
    try:
        return read(connection.send("GET", f"{path}/{identifier}", headers=headers), reader)
    except ProblemError as error:
        if error.status != 404:
            raise
    headers["Content-Type"] = "application/octet-stream"
    headers["Content-Length"] = str(package.nbytes)
    response = connection.send(
        "POST",
        path,
        headers=headers,
        body=lambda: _counted(package, on_bytes),
        patience=PATIENCE_SECONDS,
    )
    uploaded = read(response, reader)
    if uploaded.id != identifier:
        raise DigestMismatch(f"{package.name} arrived as {uploaded.id}, not as {identifier}.")
    return uploaded


def _counted(package: Package, on_bytes: Callable[[int, int], None] | None) -> Iterator[bytes]:
    sent = 0
    for chunk in package.chunks():
        yield chunk
        sent += len(chunk)
        if on_bytes:
            on_bytes(sent, package.nbytes)
