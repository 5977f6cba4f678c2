"""Files of answers, written as rows come, in memory of constant size, and gone on with.

A safetensors file is laid out before its first row and written in place; a parquet file grows by
groups of rows.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from evaluation.answer_files import DTYPES, ITEM_BYTES, Block
from evaluation.answer_journal import AnswerJournal, Written
from evaluation.parquet_answers import ParquetWriter
from jobs.inference import Column
from jobs.inferring import ResultFormat
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec, encode_header


class AnswerWriter(Protocol):
    """A file of answers that is being written; a context manager that closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def append(self, block: Block, names: list[str] | None) -> Written:
        """Write the next rows, and say where they are."""


def open_writer(
    path: Path,
    form: ResultFormat,
    columns: Sequence[Column],
    rows: int,
    about: Mapping[str, str],
    journal: AnswerJournal,
    *,
    has_names: bool,
) -> AnswerWriter:
    """Begin a file of answers, or go on with one.

    Args:
        path: Where; there is nothing yet, unless the journal says so.
        form: Which kind of file.
        columns: What a row holds.
        rows: How many there will be.
        about: What the file says of itself.
        journal: How far an attempt before this one had come, if there was one.
        has_names: Whether rows have names.

    Returns:
        What takes the rows that follow.

    Raises:
        Problem: `invalid_dataset`: rows have names, which safetensors cannot hold.
        OSError: The disk has no room for a safetensors file.
    """
    if form == "parquet":
        return ParquetWriter(path, columns, about, journal, has_names=has_names)
    if has_names:
        raise Problem(
            "invalid_dataset",
            "The data set holds images, whose answers are found by their names, and a safetensors "
            "file has none. Ask for format: parquet.",
        )
    return _TensorWriter(path, columns, rows, about, journal)


class _TensorWriter:
    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        rows: int,
        about: Mapping[str, str],
        journal: AnswerJournal,
    ) -> None:
        specs, start = [], 0
        for column in sorted(columns, key=lambda column: -ITEM_BYTES[column.dtype]):
            shape = (rows, *column.shape)
            specs.append(TensorSpec(column.name, DTYPES[column.dtype], shape, start))
            start += specs[-1].nbytes
        header = encode_header(specs, about)
        self._specs = specs
        self._data_start = len(header)
        self._nbytes = len(header) + start
        self._done, self._rows = 0, rows
        if journal.reached is not None:
            self._file = path.open("r+b", buffering=0)
            self._done = journal.reached.rows
            return
        self._file = path.open("xb", buffering=0)
        self._file.write(header)
        if start:
            # A disk that cannot hold it says so now.
            os.posix_fallocate(self._file.fileno(), 0, self._nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, block: Block, names: list[str] | None) -> Written:  # noqa: ARG002 - none are kept
        for spec in self._specs:
            values = np.ascontiguousarray(block[spec.name])
            each = spec.nbytes // max(1, self._rows)
            view = memoryview(values.reshape(-1).view(np.uint8).data)
            place = self._data_start + spec.start + self._done * each
            while view.nbytes:
                written = os.pwrite(self._file.fileno(), view, place)
                view, place = view[written:], place + written
        self._done += len(values)
        return Written(nbytes=self._nbytes)
