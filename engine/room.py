"""Whether the disk has room for an artifact, told before the first byte of it is written."""

import shutil
from pathlib import Path

from jobs.problems import Problem

#: What a job writes beside the planned files: its journal, report and manifest.
_BESIDE_BYTES = 4 * 1024**2
_BLOCK_BYTES = 512


def require_room(folder: Path, nbytes: int) -> None:
    """Refuse to begin an artifact that the disk cannot hold.

    Args:
        folder: Where it goes. What it takes up there already need not be found again.
        nbytes: Size of all its files.

    Raises:
        Problem: `storage_full`, with what is needed and what is free.
    """
    held = sum(path.stat().st_blocks * _BLOCK_BYTES for path in folder.rglob("*"))
    needed = nbytes + _BESIDE_BYTES - held
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Problem(
            "storage_full",
            f"The job would write {needed} bytes; {free} are free. Remove jobs or models that are "
            "no longer needed.",
            extra={"needed_bytes": needed, "free_bytes": free},
        )
