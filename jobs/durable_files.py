"""Files that are on the disk whole, or not at all, whatever is killed or unplugged."""

import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any


def write_json(path: Path, members: dict[str, Any]) -> None:
    """Write a JSON file durably: whole or not at all.

    Args:
        path: Where; replaced where it exists.
        members: What.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("w") as file:
            json.dump(members, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file.

    Args:
        path: Which.

    Returns:
        Its members, or None where there is no such file.
    """
    try:
        members: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return members


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that can be done.

    Args:
        folder: Which; nothing happens where there is none.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        # Somebody nested a thousand folders; the system's own tool does not go down by recursion.
        subprocess.run(["/bin/rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)
