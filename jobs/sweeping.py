"""Housekeeping: what processes that died have left on the disk is found and removed."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.blobs import BlobStore
from jobs.durable_files import remove_tree
from jobs.equal_jobs import forget_removed

#: Nothing is half-way for this long, even where a clock is set an hour wrong: it was left behind.
_DRAFT_SECONDS = 86_400


def sweep(blobs: BlobStore) -> list[str]:
    """Remove what processes that died have left: staged uploads, scratch of ended jobs.

    Args:
        blobs: Where.

    Returns:
        The names of the folders and files removed.
    """
    removed = []
    for folder in (blobs.root / "staging").iterdir():
        if folder.is_dir() and _is_abandoned(folder):
            removed.append(folder.name)
            remove_tree(folder)
    for job_id in blobs.job_ids():
        removed += [f"{job_id}/{name}" for name in _sweep_job(blobs, job_id)]
    forget_removed(blobs)
    return removed


def _sweep_job(blobs: BlobStore, job_id: str) -> Iterator[str]:
    folder = blobs.job_folder(job_id)
    is_old = _age_seconds(folder) > _DRAFT_SECONDS
    for draft in folder.glob("*.tmp"):
        if _age_seconds(draft) > _DRAFT_SECONDS:
            yield draft.name
            draft.unlink(missing_ok=True)
    if is_old and not (folder / "spec.json").exists():
        # A submit died before it was accepted; what a person put here stays.
        with suppress(OSError):
            folder.rmdir()
    try:
        result = blobs.read_result(job_id)
    except ValueError:
        return  # Damaged: a person may still want what lies beside it.
    if result is None:
        return
    for path in folder.glob("*-*"):
        if path.is_dir() and path.name != result.artifact_folder:
            yield path.name
            remove_tree(path)


def _is_abandoned(staged: Path) -> bool:
    try:
        with (staged / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        # Without a lock it is on its way in or out; only a folder that stays so was left behind.
        return _age_seconds(staged) > _DRAFT_SECONDS
    return True


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0
