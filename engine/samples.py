"""Places in tensors, chosen by the tensors' names alone, and the files in which they are read."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self
from zlib import crc32

import numpy as np
import numpy.typing as npt

from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.calibrated_files import CalibratedFile

Values = npt.NDArray[np.float64]

#: How many values of a row are looked at in one place; a multiple of the 4 that an int32 holds.
WINDOW = 8192
_MOST_PLACES = 16
_FEWEST_PLACES = 3
#: Places of a model with so many tensors that each gets few.
_PLACES_OF_ALL = 16_384


@dataclass(frozen=True, order=True)
class Place:
    """A part of a row.

    Attributes:
        row: Which row.
        start: The first of its values, a multiple of `WINDOW`.
        stop: The value behind its last.
    """

    row: int
    start: int
    stop: int


def choose_places(name: str, rows: int, columns: int, tensors: int) -> list[Place]:
    """Choose what is looked at: both ends of a tensor and places between them.

    Args:
        name: The tensor's name, which seeds the choice.
        rows: How many rows it has.
        columns: How many values a row has.
        tensors: How many tensors the model has; the more, the fewer places each gets.

    Returns:
        Different places in order, none in an empty tensor; the same for equal arguments, whatever
        is in the tensor.
    """
    if not rows * columns:
        return []
    count = max(_FEWEST_PLACES, min(_MOST_PLACES, _PLACES_OF_ALL // tensors)) - 2
    windows = -(-columns // WINDOW)
    drawn = ((_draw(f"{name} {i} row", rows), _draw(f"{name} {i}", windows)) for i in range(count))
    chosen = {(0, 0), (rows - 1, windows - 1), *drawn}
    return [
        Place(row, window * WINDOW, min(columns, (window + 1) * WINDOW))
        for row, window in sorted(chosen)
    ]


def _draw(seed: str, limit: int) -> int:
    # Spread well enough, and numpy's generators would map a megabyte more of its code.
    return crc32(seed.encode()) % limit


class Reads(Protocol):
    """Gives parts of tensors."""

    def read(
        self, tensor: TensorSpec, first: int, count: int, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Read consecutive elements of a tensor; see `TensorFiles.read`."""
        ...

    def read_floats(self, tensor: TensorSpec, first: int, count: int) -> Values:
        """Read consecutive values of a tensor; see `TensorFiles.read_floats`."""
        ...


def floats_of(files: Reads, tensor: TensorSpec, first: int, count: int) -> Values:
    """Read consecutive values of a tensor; see `TensorFiles.read_floats`."""
    if tensor.dtype == "BF16":
        patterns = files.read(tensor, first, count, np.uint16).astype(np.uint32) << 16
        return patterns.view(np.float32).astype(np.float64)
    kind = {"F16": np.float16, "F32": np.float32}[tensor.dtype]
    return files.read(tensor, first, count, kind).astype(np.float64)


class TensorFiles:
    """The files of a checkpoint, open for reading parts of tensors; a context that closes them.

    Args:
        checkpoint: The checkpoint.
        calibrated: Files of a calibration; what they hold is read from there.
    """

    def __init__(self, checkpoint: Checkpoint, calibrated: Iterable[CalibratedFile] = ()) -> None:
        shards = ((checkpoint.folder / shard.name, shard.header) for shard in checkpoint.shards)
        self._headers = (*shards, *((file.path, file.header) for file in calibrated))
        self._places: dict[str, tuple[int, int, str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for path, header in self._headers:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, file)
            for tensor in header.tensors:
                self._places[tensor.name] = file, header.data_start + tensor.start, path.name
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(
        self, tensor: TensorSpec, first: int, count: int, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Read consecutive elements of a tensor.

        Args:
            tensor: The tensor.
            first: The first of them, as the tensor's bytes are cut into `dtype`.
            count: How many.
            dtype: What they are read as.

        Returns:
            The elements.

        Raises:
            Problem: `invalid_artifact`: the file ended early.
        """
        file, start, name = self._places[tensor.name]
        elements = np.empty(count, dtype)
        position = start + first * elements.itemsize
        if os.preadv(file, [elements.data], position) != elements.nbytes:
            raise Problem("invalid_artifact", f"{name} ended inside tensor {tensor.name!r}.")
        return elements

    def read_floats(self, tensor: TensorSpec, first: int, count: int) -> Values:
        """Read consecutive values of a tensor.

        Args:
            tensor: The tensor, of dtype BF16, F16 or F32.
            first: The first of them.
            count: How many.

        Returns:
            The values, exact.
        """
        return floats_of(self, tensor, first, count)
