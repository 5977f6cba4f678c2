"""What decides which weights are pruned: integers of which the smallest go.

Dimension key: R rows of a chunk, W values of each.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine import float_kernels, pruning_kernels
from engine.chunks import Chunk, steps_of
from engine.compilation import Bits
from engine.workbench import Workbench
from planning.extents import Extent
from planning.matrices import Matrix

#: What leaves the magnitude of a bit pattern, by the bytes that it has.
MAGNITUDE = {2: 0x7FFF, 4: 0x7FFFFFFF}
_ALL = 0xFFFFFFFF


class Ranking(Protocol):
    """Gives the keys of a tensor's weights."""

    @property
    def key_bits(self) -> int:
        """How long a key is."""
        ...

    def keys(self, bits: Bits, chunk: Chunk, bench: Workbench) -> tuple[Bits, int]:
        """Give the keys of a chunk.

        Args:
            bits: Its bit patterns, [R, W]; they may be the keys themselves.
            chunk: Where it is.
            bench: Memory for the keys, as ``"keys"``.

        Returns:
            Integers, [R, W], and which of their bits are the keys.
        """
        ...


@dataclass(frozen=True)
class Magnitudes:
    """The absolute values, in an order that every dtype has of its own.

    Attributes:
        itemsize: How many bytes a weight has.
    """

    itemsize: int

    @property
    def key_bits(self) -> int:
        """How long a key is; see `Ranking`."""
        return 8 * self.itemsize - 1

    def keys(self, bits: Bits, chunk: Chunk, bench: Workbench) -> tuple[Bits, int]:  # noqa: ARG002
        """Give the chunk itself; see `Ranking`."""
        return bits, MAGNITUDE[self.itemsize]


@dataclass(frozen=True)
class WideMagnitudes:
    """The absolute values in the order of float32, which compares weights of all dtypes.

    Attributes:
        kind: The weights' dtype, as in `float_kernels.KINDS`.
        key_bits: How long a key is.
    """

    kind: int
    key_bits: int = 31

    def keys(self, bits: Bits, chunk: Chunk, bench: Workbench) -> tuple[Bits, int]:  # noqa: ARG002
        """Give the keys of a chunk; see `Ranking`."""
        if self.kind == float_kernels.F32:
            return bits, MAGNITUDE[4]
        keys = bench.take("keys", bits.shape, np.uint32)
        float_kernels.wide_keys(bits.reshape(-1), self.kind, keys.reshape(-1))
        return keys, MAGNITUDE[4]


@dataclass(frozen=True)
class Draws:
    """Numbers drawn for every weight: the smallest of them make a uniform choice of any size.

    Two weights share a number once in 2**32 pairs, and then the first counts as smaller.

    Attributes:
        seed: Seed of the draws.
        matrix: The tensor.
        extent: How it is cut.
        first: How many draws come before the tensor's.
        key_bits: How long a key is.
    """

    seed: int
    matrix: Matrix
    extent: Extent
    first: int = 0
    key_bits: int = 32

    def keys(self, bits: Bits, chunk: Chunk, bench: Workbench) -> tuple[Bits, int]:  # noqa: ARG002
        """Give the keys of a chunk, which do not depend on its weights; see `Ranking`."""
        keys = bench.take("keys", (chunk.rows, chunk.width), np.uint32)
        position, row_step, column_step = steps_of(chunk, self.extent, self.matrix)
        pruning_kernels.draw_keys(
            keys, np.uint64(self.seed), self.first + position, row_step, column_step
        )
        return keys, _ALL


def seed_of(seed: int, step: int, name: str) -> int:
    """Give a seed of its own for every step and tensor.

    Args:
        seed: The recipe's seed.
        step: Which step.
        name: The tensor's name; empty where all tensors are one stream.

    Returns:
        A number of 64 bits.
    """
    digest = hashlib.blake2b(f"{seed}:{step}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
