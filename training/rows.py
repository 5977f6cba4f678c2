"""The rows of a data set as a model takes them, on disk, so that any of them is read at any time.

They come in the order of the data set and are wanted in a shuffled one, in every epoch another. So
each is written down once, without its padding, and read where it lies.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.inputs import MASK, Batch
from jobs.problems import Problem

#: What a label is called among a row's fields.
LABELS = "labels"
_NUMPY = {
    torch.bool: np.bool_,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        fields: What the model takes, by name, without the dimension of the batch; and `labels`.
        tokens: How long its first dimension is where rows differ in that; None where none do.
        whole: Names of fields that are of the row, and have no dimension of tokens all the same.
    """

    fields: Mapping[str, torch.Tensor]
    tokens: int | None = None
    whole: frozenset[str] = frozenset()


def rows_of(batch: Batch) -> Iterator[Row]:
    """Take a batch apart.

    Args:
        batch: Rows that are padded to the longest of them, or all of one shape.

    Yields:
        Its rows, without padding that comes last.
    """
    fields = {name: _plain(tensor) for name, tensor in batch.inputs.items()}
    if batch.labels is not None:
        fields[LABELS] = _plain(batch.labels)
    lengths = _lengths(batch)
    for row in range(batch.rows):
        tokens = None if lengths is None else lengths[row]
        yield Row(
            {
                name: tensor[row] if name == LABELS or tensor.ndim == 1 else tensor[row, :tokens]
                for name, tensor in fields.items()
            },
            tokens,
            frozenset({LABELS}),
        )


def _lengths(batch: Batch) -> list[int] | None:
    """Give where each row's padding begins, where all its inputs are one value per token."""
    if batch.mask is None or any(t.shape != batch.mask.shape for t in batch.inputs.values()):
        return None
    places = torch.arange(1, batch.mask.shape[1] + 1)
    return [int(length) for length in (batch.mask * places).amax(dim=1)]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor in one of the three dtypes in which rows are kept."""
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64)


@dataclass(frozen=True)
class _Field:
    """One field of all rows: its values in one file, one row after the other."""

    descriptor: int
    dtype: torch.dtype
    trailing: tuple[int, ...]
    has_tokens: bool


class RowStore:
    """Rows on disk.

    Args:
        folder: Where they are written; it is there and empty, and whoever made it removes it.
        rows: The rows. All have the same fields.
        padding: What fields are padded with, by name, where that is not zero.

    Attributes:
        tokens: How long each row is, int64 [N]; ones where rows have no tokens.

    Raises:
        Problem: `invalid_dataset`: there is no row, or one has other fields or shapes.
    """

    tokens: np.ndarray

    def __init__(
        self, folder: Path, rows: Iterable[Row], padding: Mapping[str, int] | None = None
    ) -> None:
        self._fields: dict[str, _Field] = {}
        self._padding = padding or {}
        try:
            lengths = self._write(folder, rows)
        except BaseException:
            self.close()
            raise
        self.tokens = np.array(lengths, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.tokens)])

    def __len__(self) -> int:
        return len(self.tokens)

    def close(self) -> None:
        """Close its files."""
        for field in self._fields.values():
            os.close(field.descriptor)
        self._fields = {}

    def collate(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Read rows as one batch.

        Args:
            numbers: Which ones, from 0.

        Returns:
            Every field, [B, …], rows padded at their ends to the longest of them; the mask, where
            there is one, is zero there.
        """
        longest = int(self.tokens[list(numbers)].max())
        return {
            name: torch.stack([self._read(name, number, longest) for number in numbers])
            for name in self._fields
        }

    def _write(self, folder: Path, rows: Iterable[Row]) -> list[int]:
        """Write all rows, and give how long each is."""
        lengths: list[int] = []
        for number, row in enumerate(rows, start=1):
            if not self._fields:
                self._open(folder, row)
            self._append(row, number)
            lengths.append(1 if row.tokens is None else row.tokens)
        if not lengths:
            raise Problem("invalid_dataset", "The data set has no rows.")
        return lengths

    def _open(self, folder: Path, row: Row) -> None:
        for name, values in row.fields.items():
            has_tokens = row.tokens is not None and name not in row.whole
            trailing = tuple(values.shape[1:] if has_tokens else values.shape)
            # A name comes from a stranger's file, so it names no file here.
            path = folder / f"field-{len(self._fields)}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._fields[name] = _Field(descriptor, values.dtype, trailing, has_tokens)

    def _append(self, row: Row, number: int) -> None:
        if row.fields.keys() != self._fields.keys():
            raise Problem(
                "invalid_dataset",
                f"Row {number} has the fields {sorted(row.fields)}, those before it "
                f"{sorted(self._fields)}.",
            )
        for name, field in self._fields.items():
            values = row.fields[name]
            shape = (row.tokens, *field.trailing) if field.has_tokens else field.trailing
            if tuple(values.shape) != shape or values.dtype != field.dtype:
                raise Problem(
                    "invalid_dataset",
                    f"{name} of row {number} is {values.dtype} of {list(values.shape)}, unlike "
                    "that of the rows before it.",
                )
            view = values.contiguous().numpy().reshape(-1).view(np.uint8).data
            while view.nbytes:
                view = view[os.write(field.descriptor, view) :]

    def _read(self, name: str, number: int, longest: int) -> torch.Tensor:
        field = self._fields[name]
        width = math.prod(field.trailing)
        start, count = (
            (int(self._starts[number]), int(self.tokens[number])) if field.has_tokens
            else (number, 1)
        )  # fmt: skip
        dtype = np.dtype(_NUMPY[field.dtype])
        size = count * width * dtype.itemsize
        raw = os.pread(field.descriptor, size, start * width * dtype.itemsize)
        if len(raw) != size:
            raise OSError("a file of rows ended early")
        values = np.frombuffer(bytearray(raw), dtype)
        if not field.has_tokens:
            return torch.from_numpy(values).reshape(field.trailing)
        shape, value = (longest, *field.trailing), self._padding.get(name, 0)
        padded = torch.full(shape, value, dtype=field.dtype)
        padded[:count] = torch.from_numpy(values).reshape((count, *field.trailing))
        return padded


def is_padding_free(fields: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether a batch has no padding, so that its mask says nothing."""
    mask = fields.get(MASK)
    return mask is None or bool(mask.bool().all())
