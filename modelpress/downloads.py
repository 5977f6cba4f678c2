"""An artifact on its way to a folder: resumed after a cut, verified, and put in place at once.

The folder never holds a file under its final name that is not whole and verified. What the service
says about names, sizes and digests is checked before it is followed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import blake3

from modelpress.connection import Connection, is_passing
from modelpress.errors import (
    DigestMismatch,
    NoArtifact,
    ProblemError,
    ServiceUnreachable,
    UnexpectedAnswer,
    UnsafePath,
    raise_unless_succeeded,
)
from modelpress.values import ArtifactFile, Job

CHUNK_BYTES = 4 * 1024**2


def download_artifact(
    connection: Connection,
    job: Job,
    folder: Path,
    on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Bring all files of a job's artifact into a folder.

    Args:
        connection: The service.
        job: A job that succeeded.
        folder: Where to; made where it is missing. Files that are there with the right digest are
            kept, and a ``.part`` of an earlier download is gone on with.
        on_bytes: Called with the bytes that are there and the bytes of the whole artifact.

    Returns:
        The files, in the order of the artifact, each with the digest that the job names.

    Raises:
        JobFailed: The job failed.
        JobCancelled: The job was cancelled.
        NoArtifact: The job has not ended, or it left no files.
        UnsafePath: A file would lie outside the folder. Nothing was downloaded.
        DigestMismatch: A file is not what the job names; it was removed.
        ServiceUnreachable: The connection broke, again and again; the ``.part`` stays.
        ProblemError: The service refused.
        UnexpectedAnswer: The service answered what the contract does not allow.
    """
    raise_unless_succeeded(job)
    if not job.files:
        raise NoArtifact(f"{job.id} is {job.state} and has no artifact to download.")
    folder.mkdir(parents=True, exist_ok=True)
    targets = tuple(place(folder, file.path) for file in job.files)
    total = sum(file.bytes for file in job.files)
    done = 0
    for file, target in zip(job.files, targets, strict=True):
        before = done

        def report(nbytes: int, before: int = before) -> None:
            if on_bytes:
                on_bytes(before + nbytes, total)

        if not _is_there(target, file):
            _fetch(connection, job.id, file, target, report)
        done += file.bytes
        report(file.bytes)
    return targets


def place(folder: Path, path: str) -> Path:
    """Find where a file that the service named belongs.

    Args:
        folder: The download folder, which exists.
        path: The name, relative and with forward slashes.

    Returns:
        A path below the folder, also after its parents' symbolic links are followed.

    Raises:
        UnsafePath: The name is absolute, climbs out, or holds what some system treats specially.
    """
    parts = path.split("/")
    is_plain = path.isprintable() and not any(character in path for character in '\\:*?"<>|')
    if not is_plain or any(part in ("", ".", "..") for part in parts):
        raise UnsafePath(f"The service named a file {path!r}, which is not a plain relative path.")
    target = folder.joinpath(*parts)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise UnsafePath(f"The service named a file {path!r}, which a link leads out of {folder}.")
    return target


def _is_there(target: Path, file: ArtifactFile) -> bool:
    return (
        target.is_file() and target.stat().st_size == file.bytes and _digest(target) == file.blake3
    )


def _fetch(
    connection: Connection,
    job_id: str,
    file: ArtifactFile,
    target: Path,
    report: Callable[[int], None],
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.touch()
    address = f"/jobs/{quote(job_id, safe='')}/artifact/{quote(file.path)}"
    failures = 0
    while (have := part.stat().st_size) != file.bytes:
        try:
            _append(connection, address, part, file, report)
        except (ServiceUnreachable, ProblemError) as error:
            # Only attempts that brought nothing count: a large file gets through a bad line.
            failures = 1 if part.stat().st_size > have else failures + 1
            if not is_passing(error) or failures >= connection.backoff.attempts:
                raise
            connection.backoff.pause(failures)
    found = _digest(part)
    if found != file.blake3:
        part.unlink()
        raise DigestMismatch(f"{file.path} arrived with blake3 {found}, not {file.blake3}.")
    os.replace(part, target)


def _append(
    connection: Connection,
    address: str,
    part: Path,
    file: ArtifactFile,
    report: Callable[[int], None],
) -> None:
    have = part.stat().st_size
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if 0 < have < file.bytes:
        # The tag is asked for now, so that nothing but the part itself must be kept between runs;
        # whether the part is of these bytes shows in the digest of the whole.
        tag = connection.send("HEAD", address, headers=headers).headers.get("ETag", "")
        if tag.startswith('"'):
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with connection.stream(address, headers) as response:
        is_rest = response.status_code == 206
        if is_rest and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise UnexpectedAnswer(f"{response.url} sent another range than the one asked for.")
        nbytes = have if is_rest else 0
        with part.open("ab" if is_rest else "wb") as out:
            # Pieces as they come: gathered into larger ones, the last would be lost with a cut.
            for chunk in response.iter_raw():
                nbytes += len(chunk)
                if nbytes > file.bytes:
                    break
                out.write(chunk)
                report(nbytes)
    if nbytes > file.bytes:
        part.unlink()
        raise DigestMismatch(
            f"{file.path} is longer than the {file.bytes} bytes that were announced."
        )
    if nbytes < file.bytes:
        raise ServiceUnreachable(f"{connection.url} cut {file.path} after {nbytes} bytes.")


def _digest(path: Path) -> str:
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
