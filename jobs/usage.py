"""What a folder takes of the disk."""

import contextlib
from pathlib import Path

_BLOCK_BYTES = 512


def stored_bytes(folder: Path) -> int:
    """Count what the files of a folder take of the disk.

    Args:
        folder: Its files may come and go meanwhile.

    Returns:
        Bytes of blocks; a file with several names counts once.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * _BLOCK_BYTES
    return total
