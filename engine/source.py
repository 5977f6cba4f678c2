"""The model's files, open for reading chunk by chunk."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from engine import float_kernels
from engine.chunks import Chunk, file_position
from engine.compilation import Bits, Bytes
from engine.cut_reading import CutReader, Kept, read_into
from engine.rankings import MAGNITUDE
from engine.workbench import Workbench
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import Header
from planning.calibrated_files import CHOSEN, calibrated_files
from planning.cuts import Cut, Shrinkage
from planning.extents import Extent
from planning.selection import Target

#: The integers that hold the bit patterns of weights, by the bytes that they have.
_PATTERNS = {2: np.uint16, 4: np.uint32}
#: The pattern of infinity: it and everything above is not finite.
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


class Source:
    """Reads tensors of a checkpoint in chunks; a context that closes its files.

    Args:
        checkpoint: The model.
        calibrated: Where a calibration wrote what data decided about; None without one.
        shrinkage: What its tensors become before they are read; None leaves them as they are.
        kept: Which heads and channels are kept then.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibrated: Path | None = None,
        shrinkage: Shrinkage | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._calibrated = calibrated
        self._sources = shrinkage.sources if shrinkage else {}
        self._cuts = CutReader(kept or {})
        self._places: dict[str, tuple[int, int]] = {}
        self._chosen: dict[str, tuple[int, int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = self._checkpoint.folder
        for shard in self._checkpoint.shards:
            self._open(folder / shard.name, shard.header, self._places)
        for file in calibrated_files(self._calibrated):
            places = self._chosen if file.kind == CHOSEN else self._places
            self._open(file.path, file.header, places)
        if self._sources:
            named = self._sources.items()
            self._places = {name: self._places[source.name] for name, source in named}
        return self

    def _open(self, path: Path, header: Header, places: dict[str, tuple[int, int]]) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, file)
        for tensor in header.tensors:
            places[tensor.name] = file, header.data_start + tensor.start

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def copy_to(self, memory: Bytes, tensor: str, first: int) -> None:
        """Fill memory with consecutive bytes of a tensor that is not cut.

        Args:
            memory: Where they go.
            tensor: Its name.
            first: Which of its bytes is the first.

        Raises:
            Problem: `invalid_checkpoint`: the file ended early.
        """
        file, start = self._places[tensor]
        read_into(file, memory, start + first)

    def read(self, target: Target, extent: Extent, chunk: Chunk, bench: Workbench) -> Bits:
        """Read a chunk.

        Args:
            target: The tensor.
            extent: How it is cut.
            chunk: Which part of it.
            bench: Where the result lies, as ``"read"``.

        Returns:
            Its bit patterns, [rows, width].

        Raises:
            Problem: `non_finite_weight`, with the tensor and the index of the first NaN or
                infinity in the chunk; `invalid_checkpoint`: the file ended early.
        """
        bits: Bits = bench.take("read", (chunk.rows, chunk.width), _PATTERNS[target.itemsize])
        if target.cut is None:
            _read_chunk(self._places[target.name], extent, chunk, bits)
        else:
            self._read_cut(target.cut, target.name, extent, chunk, bits, bench)
        self._refuse_non_finite(target, extent, chunk, bits)
        return bits

    def read_chosen(self, target: Target, extent: Extent, chunk: Chunk, memory: Bits) -> None:
        """Read what a calibration made of a chunk.

        Args:
            target: A tensor that data decided about.
            extent: How it is cut.
            chunk: Which part of it.
            memory: Where its bit patterns go, [rows, width].

        Raises:
            Problem: As `read`.
        """
        _read_chunk(self._chosen[target.name], extent, chunk, memory)
        self._refuse_non_finite(target, extent, chunk, memory)

    def _read_cut(
        self, cut: Cut, name: str, extent: Extent, chunk: Chunk, bits: Bits, bench: Workbench
    ) -> None:
        file, start = self._places[name]
        for first, run in _runs(chunk, extent, bits):
            self._cuts.fill(run, cut, file, start, first, bench)

    def _refuse_non_finite(self, target: Target, extent: Extent, chunk: Chunk, bits: Bits) -> None:
        tensor = target.matrix.tensor
        mask, infinity = MAGNITUDE[target.itemsize], _INFINITY[tensor.dtype]
        if float_kernels.largest(bits.reshape(-1), mask) < infinity:
            return
        row, column = divmod(int(np.argmax((bits & mask).reshape(-1) >= infinity)), chunk.width)
        flat = file_position(chunk, extent) + row * extent.file_columns + column
        index = [int(i) for i in np.unravel_index(flat, tensor.shape)]
        raise Problem(
            "non_finite_weight",
            f"Tensor {tensor.name!r} holds a NaN or an infinity at index {index}.",
            extra={"tensor": tensor.name, "index": index},
        )


def _runs(chunk: Chunk, extent: Extent, bits: Bits) -> Iterator[tuple[int, Bits]]:
    """Yield where values lie that are neighbours in the file, and the memory that they go to."""
    first = file_position(chunk, extent)
    for i, run in enumerate([bits.reshape(-1)] if chunk.is_run else bits):
        yield first + i * extent.file_columns, run


def _read_chunk(place: tuple[int, int], extent: Extent, chunk: Chunk, bits: Bits) -> None:
    file, start = place
    for first, run in _runs(chunk, extent, bits):
        read_into(file, run, start + first * bits.itemsize)
