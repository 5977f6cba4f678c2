"""A tensor seen as output channels with their inputs, and the blocks in which it is streamed.

Dimension key: C output channels, I inputs of one channel, P places of a convolution's kernel.

Everything that counts, compares or rounds works on this view, so "row", "tie in row-major order"
and "group of inputs" mean the same for a Linear [out, in], a Conv2d [out, in, kh, kw] and GPT-2's
Conv1D [in, out], whose channels are its columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jobs.safetensors_header import DTYPE_BYTES, TensorSpec

#: The dtypes of weights that are pruned and quantized.
WEIGHT_DTYPES = frozenset({"BF16", "F16", "F32"})


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
        parts = []
        for size in reversed(self.tensor.shape):
            flat, part = divmod(flat, size)
            parts.append(part)
        return tuple(reversed(parts))


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


def pruned_count(sparsity: float, elements: int) -> int:
    """Give the number of weights that a sparsity means: the nearest integer, ties to even.

    The sparsity is taken as it is written, so 0.3 of 10 is 3 whatever 0.3 is in binary.
    """
    return round(Fraction(str(sparsity)) * elements)
