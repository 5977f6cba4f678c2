"""Take what a runner left behind as if it were hostile, and make it an artifact.

The runner worked on a stranger's bytes. So nothing it wrote is trusted: only regular files count,
links are not followed, headers are read again, and the digests are computed here.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3
from pydantic import BaseModel, ValidationError

from jobs.durable_files import fsync, write_json
from jobs.job import Artifact, ArtifactFile
from jobs.parquet_file import require_parquet
from jobs.problems import Problem
from jobs.program import open_program
from jobs.quality import Calibration, Ran
from jobs.report import Report, Verification
from jobs.safetensors_header import read_header

MANIFEST_NAME = "manifest.json"
MAX_REPORT_BYTES = 64 * 1024**2
MAX_FILES = 10_000
MAX_DEPTH = 8
#: Up to this size the sha-256 is computed before the job succeeds; it takes milliseconds.
INLINE_SHA256_BYTES = 16 * 1024**2
_READ_BYTES = 4 * 1024**2
#: How often whoever waits for the disk looks whether it is to stop.
_LOOK_SECONDS = 0.2

#: What looks at a file of an artifact again, by how its name ends.
_CHECKS: dict[str, Callable[[Path], object]] = {
    ".safetensors": read_header,
    ".pt2": open_program,
    ".parquet": require_parquet,
}

Check = Callable[[], None]
#: Path, size and blake3 of a file.
Row = dict[str, Any]
Value = TypeVar("Value", bound=BaseModel)


@contextmanager
def measuring(folder: Path, most_bytes: int, check: Check) -> Iterator[Future[list[Row]]]:
    """Measure the files of an artifact while the caller does something else.

    Args:
        folder: The files.
        most_bytes: How long they may be together.
        check: Called between pieces; raises to stop.

    Yields:
        What becomes of `measure_files`, which stops where the caller leaves before it has ended.
    """
    is_over = threading.Event()

    def check_both() -> None:
        check()
        if is_over.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1, "measure") as pool:
        try:
            yield pool.submit(measure_files, folder, most_bytes, check_both)
        finally:
            is_over.set()


def measure_files(folder: Path, most_bytes: int, check: Check) -> list[Row]:
    """Check and hash the files of a runner's artifact, while the disk is told to keep them.

    Args:
        folder: The files.
        most_bytes: How long they may be together; holes count, because they are read as well.
        check: Called between pieces; raises to stop.

    Returns:
        Their rows of the manifest, in the order of their paths. Files and folders are durable.

    Raises:
        Problem: `invalid_artifact`: something in the folder is not what a runner may leave.
    """
    require_folder(folder)
    paths = sorted(_walk(folder))
    if not any(path.suffix in _CHECKS for path in paths):
        raise Problem(
            "invalid_artifact", "The runner left no safetensors file, no .pt2 and no .parquet."
        )
    total = sum(path.lstat().st_size for path in paths)
    if total > most_bytes:
        raise Problem(
            "invalid_artifact", f"The runner left {total} bytes; {most_bytes} are allowed."
        )
    disk = ThreadPoolExecutor(1, "disk")
    try:
        folders = sorted({path.parent for path in paths})
        kept = [disk.submit(fsync, path) for path in [*paths, *folders]]
        rows = [{"path": str(path.relative_to(folder)), **_measure(path, check)} for path in paths]
        _wait(kept, check)
    finally:
        # Nobody who stops waits for a slow disk.
        disk.shutdown(wait=False, cancel_futures=True)
    return rows


def require_folder(folder: Path) -> None:
    """Refuse anything but a folder, such as a link that leads to somebody else's.

    Args:
        folder: Where a runner was to leave files.

    Raises:
        Problem: `invalid_artifact`.
    """
    try:
        is_folder = stat.S_ISDIR(folder.lstat().st_mode)
    except FileNotFoundError:
        is_folder = False
    if not is_folder:
        raise Problem("invalid_artifact", f"The runner left no folder {folder.name!r}.")


def seal_artifact(folder: Path, about: dict[str, Any], measured: list[Row]) -> Artifact:
    """Write the manifest of an artifact.

    Args:
        folder: The files.
        about: What the manifest says beside the files: model, recipe, engine. Nothing that
            differs between two runs of the same job, so that equal jobs give equal artifacts.
        measured: What `measure_files` found.

    Returns:
        The artifact, the manifest among its files, which is durable too.
    """
    require_folder(folder)
    write_json(folder / MANIFEST_NAME, {"version": 1, **about, "files": measured})
    manifest = {"path": MANIFEST_NAME, **_measure(folder / MANIFEST_NAME, lambda: None)}
    rows = sorted([*measured, manifest], key=lambda row: str(row["path"]))
    total = sum(row["bytes"] for row in rows)
    listing = "".join(f"{row['blake3']}  {row['path']}\n" for row in rows)
    inline = total <= INLINE_SHA256_BYTES
    files = tuple(
        ArtifactFile(**row, sha256=sha256(folder / row["path"]) if inline else None) for row in rows
    )
    return Artifact(
        bytes=total, digest=f"blake3:{blake3(listing.encode()).hexdigest()}", files=files
    )


def read_report(path: Path) -> Report:
    """Read the report that a runner left.

    Args:
        path: The file.

    Returns:
        The report, checked against its schema.

    Raises:
        Problem: `invalid_artifact`: there is none, or it is not a report.
    """
    return read_left(path, Report)


def read_verification(path: Path) -> Verification:
    """Read what a verifying runner left.

    Args:
        path: The file.

    Returns:
        What it found, checked against its schema.

    Raises:
        Problem: `invalid_artifact`: there is none, or it is something else.
    """
    return read_left(path, Verification)


def read_ran(path: Path) -> Ran:
    """Read what a runner that ran a model left.

    Args:
        path: The file.

    Returns:
        What it measured, checked against its schema.

    Raises:
        Problem: `invalid_artifact`: there is none, or it is something else.
    """
    return read_left(path, Ran)


def read_calibration(path: Path) -> Calibration:
    """Read what a runner that took a model through data left.

    Args:
        path: The file.

    Returns:
        What it found, checked against its schema.

    Raises:
        Problem: `invalid_artifact`: there is none, or it is something else.
    """
    return read_left(path, Calibration)


def read_left(path: Path, kind: type[Value]) -> Value:
    """Read a document that a runner left.

    Args:
        path: The file.
        kind: What it is to be.

    Returns:
        It, checked against its schema.

    Raises:
        Problem: `invalid_artifact`: there is none, or it is something else.
    """
    try:
        raw = _read_plain(path)
    except OSError as error:
        raise Problem("invalid_artifact", f"{path.name} cannot be read: {error}.") from error
    if len(raw) > MAX_REPORT_BYTES:
        raise Problem("invalid_artifact", f"{path.name} is larger than {MAX_REPORT_BYTES} bytes.")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        # Where it is wrong, and not what stands there.
        faults = error.errors(include_input=False, include_context=False, include_url=False)
        detail = f"{path.name} is not what it should be: {str(faults)[:500]}."
        raise Problem("invalid_artifact", detail) from None


def _read_plain(path: Path) -> bytes:
    """Read a file that may be anything: no link is followed, and no pipe waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        return file.read(MAX_REPORT_BYTES + 1)


def sha256(path: Path) -> str:
    """Give the sha-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait(kept: list[Future[None]], check: Check) -> None:
    left = set(kept)
    while left:
        check()
        ended, left = wait(left, _LOOK_SECONDS, FIRST_EXCEPTION)
        for future in ended:
            future.result()


def _walk(folder: Path) -> Iterator[Path]:
    seen = 0
    folders = [(folder, 0)]
    while folders:
        current, depth = folders.pop()
        with os.scandir(current) as scanned:
            entries = list(islice(scanned, MAX_FILES + 1))
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            seen += 1
            if seen > MAX_FILES:
                raise Problem("invalid_artifact", f"The runner left more than {MAX_FILES} files.")
            if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                folders.append((Path(entry.path), depth + 1))
            # One that has a second name could be changed by that name while it is hashed.
            elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                yield Path(entry.path)
            else:
                raise Problem(
                    "invalid_artifact", f"The runner left {entry.name!r}, which is no plain file."
                )


def _measure(path: Path, check: Check) -> Row:
    if path.suffix in _CHECKS:
        try:
            _CHECKS[path.suffix](path)
        except Problem as problem:
            raise Problem("invalid_artifact", f"{path.name}: {problem.detail}") from problem
    hasher = blake3()
    size = 0
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            hasher.update(view[:read])
            size += read
            check()
    return {"bytes": size, "blake3": hasher.hexdigest()}
