"""Uploaded data sets, read some rows at a time, never whole.

What a file is, its first bytes tell: JSON lines with a text, and perhaps a label, in each; tensors
by name in safetensors; or arrays by name in .npz. Their first dimension counts the rows.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from jobs.problems import Problem

_ZIP = b"PK\x03\x04"
#: One row of text; longer ones are no rows of text.
_MOST_LINE_BYTES = 4 * 1024**2
#: Of the rows that are read at a time, as int64 or float32 and as the characters of text.
_MOST_BATCH_BYTES = 256 * 1024**2
_KEYS = frozenset({"text", "label"})


@dataclass(frozen=True)
class TextRows:
    """Some rows of text.

    Attributes:
        texts: The texts.
        labels: Their labels, numbers or names; None where the rows have none.
    """

    texts: list[str]
    labels: list[Any] | None


def read_rows(path: Path, batch: int, most: int) -> Iterator[TextRows | dict[str, torch.Tensor]]:
    """Read a data set, some rows at a time.

    Args:
        path: The uploaded file.
        batch: How many rows at a time.
        most: How many rows at most; the first of them.

    Yields:
        Rows of text, or tensors by name with as many rows.

    Raises:
        Problem: `invalid_dataset`: it is none of the formats, or some row of it is wrong.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_ZIP):
        yield from _read_npz(path, batch, most)
    elif head.lstrip()[:1] == b"{":
        yield from _read_lines(path, batch, most)
    elif len(head) > 8 and head[8:9] == b"{":
        yield from _read_safetensors(path, batch, most)
    else:
        raise _invalid(
            "It is neither JSON lines, nor safetensors, nor .npz: its first bytes are "
            f"{head[:8].hex(' ')}."
        )


def _read_lines(path: Path, batch: int, most: int) -> Iterator[TextRows]:
    with path.open("rb") as file:
        rows = islice(_parsed(file), most)
        first: bool | None = None
        while chunk := list(islice(rows, batch)):
            labels = ["label" in row for _, row in chunk]
            first = labels[0] if first is None else first
            if any(has_label != first for has_label in labels):
                line = chunk[labels.index(not first)][0]
                raise _invalid(
                    f"Line {line} has {'no' if first else 'a'} label, unlike the lines before."
                )
            texts = [row["text"] for _, row in chunk]
            _refuse_large(sum(map(len, texts)), batch)
            yield TextRows(texts, [row["label"] for _, row in chunk] if first else None)


def _parsed(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > _MOST_LINE_BYTES:
            raise _invalid(f"Line {number} is longer than {_MOST_LINE_BYTES} bytes.")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"Line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise _invalid(f"Line {number} is no object with a text.")
        if unknown := sorted(row.keys() - _KEYS):
            raise _invalid(f"Line {number} has the member {unknown[0][:80]!a}; text and label are.")
        yield number, row


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
        raise _invalid(f"It is no safetensors file: {error}.") from error


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
        raise _invalid(f"It is no .npz file: {str(error)[:200]}.") from error


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
        raise _invalid("It holds no field.")
    rows = {name: shape[0] if shape else 0 for name, shape in shapes.items()}
    first, count = next(iter(rows.items()))
    if count == 0:
        raise _invalid(f"Field {first[:80]!a} has no rows.")
    for name, other in rows.items():
        if other != count:
            raise _invalid(f"Field {name[:80]!a} has {other} rows, and {first[:80]!a} has {count}.")
    return count


def _refuse_wide(shapes: dict[str, tuple[int, ...]], batch: int) -> None:
    _refuse_large(batch * sum(8 * math.prod(shape[1:]) for shape in shapes.values()), batch)


def _refuse_large(nbytes: int, batch: int) -> None:
    if nbytes > _MOST_BATCH_BYTES:
        raise _invalid(
            f"{batch} rows of it take {nbytes} bytes in memory, and {_MOST_BATCH_BYTES} are "
            "allowed. Lower evaluate.batch_size, or make the rows smaller."
        )


def _invalid(detail: str) -> Problem:
    return Problem("invalid_dataset", f"The data set cannot be read. {detail}")
