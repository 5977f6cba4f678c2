"""Files of answers read again, some rows at a time."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.answer_files import DTYPES, GROUP_BYTES, NAMES, Block, arrow_type, row_bytes
from jobs.inference import Column
from jobs.inferring import ResultFormat
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec, read_header


def read_blocks(path: Path, form: ResultFormat, columns: Sequence[Column]) -> Iterator[Block]:
    """Read a file of answers again, some rows at a time.

    Args:
        path: The file.
        form: Which kind it is said to be.
        columns: What it is said to hold.

    Yields:
        Its rows in order, [B, …].

    Raises:
        Problem: `invalid_artifact`: it holds other columns, or is damaged.
    """
    read = _read_parquet if form == "parquet" else _read_tensors
    most = max(1, GROUP_BYTES // max(1, row_bytes(columns)))
    try:
        yield from read(path, columns, most)
    except Problem:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise _wrong(path, f"cannot be read: {reason}") from error


def _read_tensors(path: Path, columns: Sequence[Column], most: int) -> Iterator[Block]:
    header = read_header(path)
    specs = {spec.name: spec for spec in header.tensors}
    rows = next((spec.shape[0] for spec in header.tensors if spec.shape), 0)
    wanted = {c.name: (DTYPES[c.dtype], (rows, *c.shape)) for c in columns}
    if {name: (spec.dtype, spec.shape) for name, spec in specs.items()} != wanted:
        raise _wrong(path, "holds other tensors than the report says")
    with path.open("rb", buffering=0) as file:
        for first in range(0, rows, most):
            count = min(most, rows - first)
            yield {
                c.name: _read_part(file.fileno(), header.data_start, specs[c.name], c, first, count)
                for c in columns
            }


def _read_part(
    descriptor: int, data_start: int, spec: TensorSpec, column: Column, first: int, count: int
) -> np.ndarray:
    each = spec.nbytes // spec.shape[0]
    raw = os.pread(descriptor, count * each, data_start + spec.start + first * each)
    return np.frombuffer(raw, column.dtype).reshape(count, *column.shape)


def _read_parquet(path: Path, columns: Sequence[Column], most: int) -> Iterator[Block]:
    from pyarrow import parquet  # noqa: PLC0415 - safetensors need none of it

    file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    schema = file.schema_arrow
    found = {field.name: field.type for field in schema if field.name != NAMES}
    if found != {column.name: arrow_type(column) for column in columns}:
        raise _wrong(path, "holds other columns than the report says")
    for part in file.iter_batches(most, columns=[c.name for c in columns], use_threads=False):
        yield {c.name: _flat(part.column(c.name), c) for c in columns}


def _flat(array: Any, column: Column) -> np.ndarray:  # noqa: ANN401
    rows = len(array)
    for _ in column.shape:
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"{column.name} lacks values")
    return np.asarray(array).reshape(rows, *column.shape)


def _wrong(path: Path, what: str) -> Problem:
    return Problem("invalid_artifact", f"{path.name} {what}.")
