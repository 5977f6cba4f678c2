"""Files of answers, written as rows come, in memory of constant size.

A safetensors file is laid out before its first row and written in place; a parquet file grows by
groups of rows.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from jobs.inference import Column
from jobs.inferring import ResultFormat
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec, encode_header

#: What rows are called in a parquet file, where the data set has names for them.
NAMES = "name"
#: Of a group of parquet's rows, and of what is read at a time.
GROUP_BYTES = 4 * 1024**2
DTYPES = {"float32": "F32", "int64": "I64"}
_ITEM_BYTES = {"float32": 4, "int64": 8}

#: Values by column, as many rows in each.
Block = Mapping[str, np.ndarray]


def row_bytes(columns: Sequence[Column]) -> int:
    """Give what a row takes in memory, and about in a file."""
    return sum(math.prod(column.shape) * _ITEM_BYTES[column.dtype] for column in columns)


class AnswerWriter(Protocol):
    """A file of answers that is being written; a context manager that closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def append(self, block: Block, names: list[str] | None) -> None:
        """Write the next rows."""


def open_writer(
    path: Path,
    form: ResultFormat,
    columns: Sequence[Column],
    rows: int,
    about: Mapping[str, str],
    *,
    has_names: bool,
) -> AnswerWriter:
    """Begin a file of answers.

    Args:
        path: Where; there is nothing yet.
        form: Which kind of file.
        columns: What a row holds.
        rows: How many there will be.
        about: What the file says of itself.
        has_names: Whether rows have names.

    Returns:
        What takes the rows.

    Raises:
        Problem: `invalid_dataset`: rows have names, which safetensors cannot hold.
        OSError: The disk has no room for a safetensors file.
    """
    if form == "parquet":
        return _ParquetWriter(path, columns, about, has_names=has_names)
    if has_names:
        raise Problem(
            "invalid_dataset",
            "The data set holds images, whose answers are found by their names, and a safetensors "
            "file has none. Ask for format: parquet.",
        )
    return _TensorWriter(path, columns, rows, about)


class _TensorWriter:
    def __init__(
        self, path: Path, columns: Sequence[Column], rows: int, about: Mapping[str, str]
    ) -> None:
        specs, start = [], 0
        for column in sorted(columns, key=lambda column: -_ITEM_BYTES[column.dtype]):
            shape = (rows, *column.shape)
            specs.append(TensorSpec(column.name, DTYPES[column.dtype], shape, start))
            start += specs[-1].nbytes
        header = encode_header(specs, about)
        self._file = path.open("xb", buffering=0)
        self._file.write(header)
        self._specs = specs
        self._data_start = len(header)
        self._done, self._rows = 0, rows
        if start:
            # A disk that cannot hold it says so now.
            os.posix_fallocate(self._file.fileno(), 0, len(header) + start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, block: Block, names: list[str] | None) -> None:  # noqa: ARG002 - none are kept
        for spec in self._specs:
            values = np.ascontiguousarray(block[spec.name])
            each = spec.nbytes // max(1, self._rows)
            view = memoryview(values.reshape(-1).view(np.uint8).data)
            place = self._data_start + spec.start + self._done * each
            while view.nbytes:
                written = os.pwrite(self._file.fileno(), view, place)
                view, place = view[written:], place + written
        self._done += len(values)


class _ParquetWriter:
    def __init__(
        self, path: Path, columns: Sequence[Column], about: Mapping[str, str], *, has_names: bool
    ) -> None:
        import pyarrow as pa  # noqa: PLC0415 - tens of megabytes, which safetensors need not have
        from pyarrow import parquet  # noqa: PLC0415

        self._columns = columns
        # Its own pools keep what was freed.
        self._pool = pa.system_memory_pool()
        fields = [pa.field(NAMES, pa.string(), nullable=False)] if has_names else []
        fields += [pa.field(c.name, arrow_type(c), nullable=False) for c in columns]
        self._schema = pa.schema(fields, metadata=dict(about))
        self._writer = parquet.ParquetWriter(
            path,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            memory_pool=self._pool,
        )
        self._held: list[tuple[Block, list[str] | None]] = []
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()

    def append(self, block: Block, names: list[str] | None) -> None:
        self._held.append((block, names))
        self._held_bytes += sum(values.nbytes for values in block.values())
        if self._held_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 - as above

        if not self._held:
            return
        arrays = []
        if NAMES in self._schema.names:
            names = [name for _, some in self._held for name in some or ()]
            arrays.append(pa.array(names, pa.string(), memory_pool=self._pool))
        for column in self._columns:
            flat = np.concatenate([b[column.name].reshape(-1) for b, _ in self._held])
            arrays.append(_nested(pa.array(flat), column))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._held, self._held_bytes = [], 0
        self._writer.write_table(table, row_group_size=len(table))


def arrow_type(column: Column) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Give what a column is in parquet."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    kind = pa.float32() if column.dtype == "float32" else pa.int64()
    for size in reversed(column.shape):
        kind = pa.list_(pa.field("element", kind, nullable=False), size)
    return kind


def _nested(flat: Any, column: Column) -> Any:  # noqa: ANN401
    import pyarrow as pa  # noqa: PLC0415 - as above

    for i in reversed(range(len(column.shape))):
        kind = arrow_type(column.model_copy(update={"shape": column.shape[i:]}))
        flat = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return flat


def file_metadata(classes: Mapping[int, str] | None, output: str) -> dict[str, str]:
    """Give what a file of answers says of itself: what they are, and the names of classes."""
    about = {"output": output}
    if classes:
        about["classes"] = json.dumps([classes[i] for i in sorted(classes)])
    return about
