"""Compute sha-256 digests of large artifacts after their job has succeeded.

On a CPU without SHA instructions sha-256 takes several times as long as making the artifact did,
so nobody should wait for it: downloads are verified by blake3 until it is there. A worker that is
told to end does not wait either; the next one to start does what was left.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from jobs.blobs import SHA256_NAME, BlobStore
from jobs.durable_files import write_json
from jobs.job import Artifact

_log = structlog.get_logger(__name__)

_READ_BYTES = 4 * 1024**2


class _Stopped(Exception):  # noqa: N818 - not an error: the worker ends
    """The worker was told to end."""


class Checksums:
    """Hashes artifacts one after another in a thread of its own.

    Args:
        every: Gives the blob stores whose jobs a worker before may have left.
    """

    def __init__(self, every: Callable[[], Iterable[BlobStore]]) -> None:
        self._every = every
        self._waiting: queue.SimpleQueue[tuple[str, Path, Artifact] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="checksums", daemon=True)
        self._thread.start()

    def add(self, job_id: str, folder: Path, artifact: Artifact) -> None:
        """Hash an artifact's files, where any digest is missing.

        Args:
            job_id: The job that made it.
            folder: Its files, inside the job's own folder.
            artifact: What is known of them.
        """
        if any(file.sha256 is None for file in artifact.files):
            self._waiting.put((job_id, folder, artifact))

    def stop(self) -> None:
        """End the thread within moments; what waits is left to the next worker's start."""
        self._stopping.set()
        self._waiting.put(None)
        self._thread.join()

    def _loop(self) -> None:
        try:
            for blobs in self._every():
                for job_id in blobs.job_ids():
                    self.take_up(blobs, job_id)
            while (item := self._waiting.get()) is not None:
                self._hash(*item)
        except _Stopped:
            pass

    def take_up(self, blobs: BlobStore, job_id: str) -> None:
        """Hash an ended job's artifact, where nobody has done so.

        Args:
            blobs: Where the job is.
            job_id: The job.
        """
        if self._stopping.is_set():
            return
        folder = blobs.job_folder(job_id)
        try:
            result = blobs.read_result(job_id)
        except (OSError, ValueError):
            return  # Damaged; the reaper says so.
        if result is None or result.artifact is None or result.artifact_folder is None:
            return
        if not (folder / SHA256_NAME).exists():
            self.add(job_id, folder / result.artifact_folder, result.artifact)

    def _hash(self, job_id: str, folder: Path, artifact: Artifact) -> None:
        try:
            digests = {file.path: self._sha256(folder / file.path) for file in artifact.files}
            write_json(folder.parent / SHA256_NAME, digests)
        except FileNotFoundError:
            _log.info("job_removed_while_hashing", job_id=job_id)
        except OSError as error:
            _log.warning("checksums_failed", job_id=job_id, error=str(error))

    def _sha256(self, path: Path) -> str:
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                if self._stopping.is_set():
                    raise _Stopped
                hasher.update(piece)
        return hasher.hexdigest()
