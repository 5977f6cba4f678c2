"""Blocks of a tensor between a file and memory."""

import os

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits
from engine.magnitudes import PATTERN_DTYPES
from engine.workbench import Workbench
from jobs.problems import Problem
from planning.matrices import Block, Matrix


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
