"""The model's files, open for reading chunk by chunk."""

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from engine import float_kernels
from engine.chunks import Chunk, file_position
from engine.compilation import Bits, Bytes
from engine.rankings import MAGNITUDE
from engine.workbench import Workbench
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import Header
from planning.calibrated_files import CHOSEN, calibrated_files
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
    """

    def __init__(self, checkpoint: Checkpoint, calibrated: Path | None = None) -> None:
        self._checkpoint = checkpoint
        self._calibrated = calibrated
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
        """Fill memory with consecutive bytes of a tensor.

        Args:
            memory: Where they go.
            tensor: Its name.
            first: Which of its bytes is the first.

        Raises:
            Problem: `invalid_checkpoint`: the file ended early.
        """
        file, start = self._places[tensor]
        _read_into(file, memory, start + first)

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
        _read_chunk(self._places[target.name], extent, chunk, bits)
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


def _read_chunk(place: tuple[int, int], extent: Extent, chunk: Chunk, bits: Bits) -> None:
    file, start = place
    first = start + file_position(chunk, extent) * bits.itemsize
    if chunk.is_run:
        _read_into(file, bits, first)
        return
    for i, row in enumerate(bits):
        _read_into(file, row, first + i * extent.file_columns * bits.itemsize)


def _read_into(file: int, values: Bits | Bytes, offset: int) -> None:
    view = values.reshape(-1).view(np.uint8).data
    while view.nbytes:
        got = os.preadv(file, [view], offset)
        if got == 0:
            raise Problem("invalid_checkpoint", f"A file ended at byte {offset}, inside a tensor.")
        view, offset = view[got:], offset + got
