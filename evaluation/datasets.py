"""Uploaded data sets, read some rows at a time, never whole.

What a file is, its first bytes tell: rows of text in JSON lines or parquet; images in a tar;
tensors by name in safetensors; or arrays by name in .npz. Their first dimension counts the rows.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from evaluation.image_rows import ImageRows, read_images
from evaluation.limits import refuse_large, unreadable
from evaluation.text_rows import TextRows, read_lines, read_parquet
from jobs.problems import Problem

_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_TAR = b"ustar"


Rows = TextRows | ImageRows | dict[str, torch.Tensor]


def read_rows(path: Path, batch: int, most: int) -> Iterator[Rows]:
    """Read a data set, some rows at a time.

    Args:
        path: The uploaded file.
        batch: How many rows at a time.
        most: How many rows at most; the first of them.

    Yields:
        Rows of text, images, or tensors by name with as many rows.

    Raises:
        Problem: `invalid_dataset`: it is none of the formats, or some row of it is wrong.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        yield from _read_npz(path, batch, most)
    elif head.startswith(_PARQUET):
        yield from read_parquet(path, batch, most)
    elif head[257:262] == _TAR:
        yield from read_images(path, batch, most)
    elif head.lstrip()[:1] == b"{":
        yield from read_lines(path, batch, most)
    elif len(head) > 8 and head[8:9] == b"{":
        yield from _read_safetensors(path, batch, most)
    else:
        raise unreadable(
            "It is neither JSON lines, nor parquet, nor a tar of images, nor safetensors, nor "
            f".npz: its first bytes are {head[:8].hex(' ')}."
        )


def _read_safetensors(path: Path, batch: int, most: int) -> Iterator[dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            rows = _rows_of(shapes)
            _refuse_wide(shapes, batch)
            for start in range(0, min(rows, most), batch):
                end = min(start + batch, rows, most)
                yield {name: part[start:end] for name, part in slices.items()}
    except SafetensorError as error:
        raise unreadable(f"It is no safetensors file: {error}.") from error


def _read_npz(path: Path, batch: int, most: int) -> Iterator[dict[str, torch.Tensor]]:
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as opened:
            files = {
                name.removesuffix(".npy"): _Array(name, opened.enter_context(archive.open(name)))
                for name in archive.namelist()
            }
            shapes = {name: array.shape for name, array in files.items()}
            rows = _rows_of(shapes)
            _refuse_wide(shapes, batch)
            for start in range(0, min(rows, most), batch):
                count = min(batch, min(rows, most) - start)
                yield {name: array.read(count) for name, array in files.items()}
    except Problem:
        raise
    except Exception as error:
        # A damaged member raises whatever its decompressor does.
        raise unreadable(f"It is no .npz file: {str(error)[:200]}.") from error


class _Array:
    """An array in an .npz file, read from its first row on."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} has the version {version} of .npy")
        shape, is_fortran, dtype = read_header(file)
        if min(shape, default=0) < 0:
            raise ValueError(f"{name} has the shape {shape}")
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ValueError(f"{name} has dtype {dtype}; numbers are read, never objects")
        if is_fortran and len(shape) > 1:
            raise ValueError(f"{name} is in Fortran order; save numpy.ascontiguousarray of it")
        self.shape = tuple(shape)
        self._file = file
        self._dtype = dtype

    def read(self, rows: int) -> torch.Tensor:
        shape = (rows, *self.shape[1:])
        nbytes = math.prod(shape) * self._dtype.itemsize
        raw = self._file.read(nbytes)
        if len(raw) != nbytes:
            raise EOFError("an array ends early")
        array = np.frombuffer(bytearray(raw), self._dtype).reshape(shape)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _rows_of(shapes: dict[str, tuple[int, ...]]) -> int:
    if not shapes:
        raise unreadable("It holds no field.")
    rows = {name: shape[0] if shape else 0 for name, shape in shapes.items()}
    first, count = next(iter(rows.items()))
    if count == 0:
        raise unreadable(f"Field {first[:80]!a} has no rows.")
    for name, other in rows.items():
        if other != count:
            raise unreadable(
                f"Field {name[:80]!a} has {other} rows, and {first[:80]!a} has {count}."
            )
    return count


def _refuse_wide(shapes: dict[str, tuple[int, ...]], batch: int) -> None:
    refuse_large(batch * sum(8 * math.prod(shape[1:]) for shape in shapes.values()), batch)
