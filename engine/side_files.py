"""Writes what stands beside the weights."""

import shutil
from collections.abc import Iterable
from pathlib import Path


def copy_side_files(source: Path, target: Path, files: Iterable[str]) -> None:
    """Copy files, making the folders they need."""
    for relative in files:
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, place, follow_symlinks=False)
