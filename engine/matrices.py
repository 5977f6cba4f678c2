"""A tensor seen as output channels with their inputs, and the blocks in which it is streamed.

Dimension key: C output channels, I inputs of one channel, P places of a convolution's kernel.

Everything that counts, compares or rounds works on this view, so "row", "tie in row-major order"
and "group of inputs" mean the same for a Linear [out, in], a Conv2d [out, in, kh, kw] and GPT-2's
Conv1D [in, out], whose channels are its columns.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits
from engine.magnitudes import PATTERN_DTYPES
from engine.workbench import Workbench
from jobs.problems import Problem
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec


@dataclass(frozen=True)
class Matrix:
    """How a tensor's values belong to output channels.

    Attributes:
        tensor: The tensor in its file.
        channels: C.
        inputs: I.
        positions: P, how many consecutive values of a channel belong to one input.
        is_transposed: Whether the file holds [I, C] rather than [C, I].
    """

    tensor: TensorSpec
    channels: int
    inputs: int
    positions: int = 1
    is_transposed: bool = False

    @classmethod
    def of(cls, tensor: TensorSpec, kind: str) -> "Matrix":
        """Give the view that a kind of module asks for.

        Args:
            tensor: A weight, or the bias of a module.
            kind: The module's kind, see `engine.module_kinds`.

        Returns:
            The view; a tensor of rank 0 or 1 is one channel.
        """
        shape = tensor.shape
        if len(shape) < 2:
            return cls(tensor, 1, tensor.elements)
        if kind == "Conv1D":
            return cls(tensor, shape[1], shape[0], is_transposed=True)
        return cls(tensor, shape[0], math.prod(shape[1:]), positions=math.prod(shape[2:]))

    def index(self, position: int) -> tuple[int, ...]:
        """Give the index in the tensor's own shape of a position in the order of this view."""
        channel, i = divmod(position, self.inputs)
        flat = i * self.channels + channel if self.is_transposed else position
        return tuple(int(part) for part in np.unravel_index(flat, self.tensor.shape))


@dataclass(frozen=True)
class Block:
    """A part of a matrix that is in memory at one time.

    Attributes:
        position: Place of its first value in the order of the matrix.
        rows: How many rows its array has.
        width: How many values a row has: I, or any number where channels may be split.
    """

    position: int
    rows: int
    width: int


def blocks(matrix: Matrix, chunk_bytes: int, *, whole_channels: bool) -> Iterator[Block]:
    """Cut a matrix into blocks, in order.

    Args:
        matrix: What to cut.
        chunk_bytes: How large a block may be; one channel may be larger where it must be whole.
        whole_channels: Whether a block must hold whole channels.

    Yields:
        The blocks; together they cover every value once.
    """
    limit = max(1, chunk_bytes // DTYPE_BYTES[matrix.tensor.dtype])
    total = matrix.channels * matrix.inputs
    if not whole_channels and not matrix.is_transposed:
        for position in range(0, total, limit):
            yield Block(position, 1, min(limit, total - position))
        return
    rows = max(1, limit // max(1, matrix.inputs))
    for channel in range(0, matrix.channels, rows):
        count = min(rows, matrix.channels - channel)
        yield Block(channel * matrix.inputs, count, matrix.inputs)


def read_block(file: int, start: int, matrix: Matrix, block: Block, bench: Workbench) -> Bits:
    """Read a block's bit patterns.

    Args:
        file: Descriptor of the tensor's file.
        start: Where in the file the tensor's first byte lies.
        matrix: The tensor.
        block: Which part of it.
        bench: Where the result lies, as ``"read"``.

    Returns:
        The patterns, [rows, width].

    Raises:
        Problem: The file ended early.
    """
    dtype = np.dtype(PATTERN_DTYPES[matrix.tensor.dtype])
    bits: Bits = bench.take("read", (block.rows, block.width), dtype)
    if not matrix.is_transposed:
        _read_into(file, bits, start + block.position * dtype.itemsize)
        return bits
    # A strip of columns: one short read per row of the file, then turned in memory.
    strip = bench.take("strip", (block.width, block.rows), dtype)
    first = block.position // max(1, matrix.inputs)
    for i in range(matrix.inputs):
        _read_into(file, strip[i], start + (i * matrix.channels + first) * dtype.itemsize)
    np.copyto(bits, strip.T)
    return bits


def write_block(
    file: int,
    start: int,
    matrix: Matrix,
    block: Block,
    values: npt.NDArray[np.generic],
    row_bytes: int,
    bench: Workbench,
) -> None:
    """Write a block's values to where they belong.

    Args:
        file: Descriptor of the file to write.
        start: Where in it the tensor's first byte lies.
        matrix: The tensor as it was read.
        block: Which part of it.
        values: What to write, [rows, width]; any dtype.
        row_bytes: How many bytes a row of the written tensor takes, padding included. Padding is
            not written: a fresh file holds zeros there.
        bench: Memory for turning a strip, as ``"strip"``.
    """
    itemsize = values.dtype.itemsize
    if matrix.is_transposed:
        strip = bench.take("strip", (block.width, block.rows), values.dtype)
        np.copyto(strip, values.T)
        first = block.position // max(1, matrix.inputs)
        for i in range(matrix.inputs):
            write_at(file, strip[i], start + i * row_bytes + first * itemsize)
    elif block.width * itemsize == row_bytes or block.rows == 1:
        channel, i = divmod(block.position, matrix.inputs)
        write_at(file, values, start + channel * row_bytes + i * itemsize)
    else:
        padded = bench.take("padded", (block.rows, row_bytes), np.uint8)
        padded[:, block.width * itemsize :] = 0
        padded[:, : block.width * itemsize] = values.view(np.uint8)
        write_at(file, padded, start + block.position // matrix.inputs * row_bytes)


def write_at(file: int, values: npt.NDArray[np.generic], offset: int) -> None:
    """Write all of an array's bytes at an offset."""
    view = values.reshape(-1).view(np.uint8).data
    while view.nbytes:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _read_into(file: int, values: npt.NDArray[np.generic], offset: int) -> None:
    view = values.reshape(-1).view(np.uint8).data
    while view.nbytes:
        got = os.preadv(file, [view], offset)
        if got == 0:
            raise Problem("invalid_checkpoint", f"A file ended at byte {offset}, inside a tensor.")
        view, offset = view[got:], offset + got
