"""Compute sha-256 digests of large artifacts after their job has succeeded.

On a CPU without SHA instructions sha-256 takes several times as long as making the artifact did,
so nobody should wait for it: downloads are verified by blake3 until it is there.
"""

import queue
import threading
from pathlib import Path

import structlog

from jobs.blobs import BlobStore, write_json
from jobs.job import Artifact
from worker.collect import sha256

_log = structlog.get_logger(__name__)

SHA256_NAME = "sha256.json"


class Checksums:
    """Hashes artifacts one after another in a thread of its own.

    Args:
        blobs: The blob store.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._waiting: queue.SimpleQueue[tuple[str, Path, Artifact] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="checksums", daemon=True)
        self._thread.start()

    def add(self, job_id: str, folder: Path, artifact: Artifact) -> None:
        """Hash an artifact's files, where any digest is missing.

        Args:
            job_id: The job that made it.
            folder: Its files.
            artifact: What is known of them.
        """
        if any(file.sha256 is None for file in artifact.files):
            self._waiting.put((job_id, folder, artifact))

    def stop(self) -> None:
        """Hash what waits, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._waiting.get()) is not None:
            job_id, folder, artifact = item
            try:
                digests = {file.path: sha256(folder / file.path) for file in artifact.files}
                write_json(self._blobs.job_folder(job_id) / SHA256_NAME, digests)
            except FileNotFoundError:
                _log.info("job_removed_while_hashing", job_id=job_id)
            except OSError as error:
                _log.warning("checksums_failed", job_id=job_id, error=str(error))
