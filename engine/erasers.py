"""Pruning of a stream of chunks that are worked on side by side.

An eraser is asked for an `Erasure` of every chunk, in the order of the stream, and these may then
be done in any order: each waits for what it needs to know of the chunks before it.

Dimension key: R rows of a chunk, W values of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from engine.chunks import Chunk
from engine.compilation import Bits
from engine.measurements import Measurement
from engine.rankings import Ranking
from engine.relays import Relay
from engine.source import Source
from engine.workbench import Workbench
from planning.extents import Extent
from planning.selection import Target

#: Copies one chunk, [R, W], from memory to other memory with some of its weights as +0.
Erasure = Callable[[Bits, Bits, Workbench], None]


class Eraser(Protocol):
    """Sets weights of consecutive chunks to +0."""

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk."""
        ...

    def fork(self) -> "Eraser":
        """Give an eraser that goes on where this one stands, for another look at the same."""
        ...


@dataclass(frozen=True)
class ThresholdEraser:
    """Prunes the smallest, ties in the order of the stream.

    Attributes:
        ranking: What decides.
        measurement: What splits the smallest from the rest.
        ties: How many ties came before.
    """

    ranking: Ranking
    measurement: Measurement
    ties: Relay[int]

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk; see `Eraser`."""
        return partial(self._erase, chunk, self.ties.issue())

    def fork(self) -> "ThresholdEraser":
        """Go on in another look; see `Eraser`."""
        return ThresholdEraser(self.ranking, self.measurement, self.ties.fork())

    def _erase(self, chunk: Chunk, turn: int, before: Bits, after: Bits, bench: Workbench) -> None:
        threshold = self.measurement.result()
        keys, mask = self.ranking.keys(before, chunk, bench)
        flat = keys.reshape(-1)
        ties = bench.kernels.count_equal(flat, mask, threshold.key)
        left = max(0, threshold.ties - self.ties.take(turn, int(ties)))
        bench.kernels.erase_smallest(
            before.reshape(-1), flat, mask, threshold.key, left, after.reshape(-1)
        )


@dataclass(frozen=True)
class ChosenEraser:
    """Gives what a calibration made of a tensor, where that says which weights stay.

    Attributes:
        source: Where from.
        target: The tensor.
        extent: How it is cut.
    """

    source: Source
    target: Target
    extent: Extent

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk; see `Eraser`."""
        return partial(self._erase, chunk)

    def fork(self) -> "ChosenEraser":
        """Give itself, because no chunk depends on another; see `Eraser`."""
        return self

    def _erase(self, chunk: Chunk, _: Bits, after: Bits, __: Workbench) -> None:
        self.source.read_chosen(self.target, self.extent, chunk, after)


@dataclass(frozen=True)
class RowEraser:
    """Prunes the same number of weights, the smallest, in every row of a chunk.

    Attributes:
        ranking: What decides.
        count: How many.
    """

    ranking: Ranking
    count: int

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk; see `Eraser`."""
        return partial(self._erase, chunk)

    def fork(self) -> "RowEraser":
        """Give itself, because no chunk depends on another; see `Eraser`."""
        return self

    def _erase(self, chunk: Chunk, before: Bits, after: Bits, bench: Workbench) -> None:
        keys, mask = self.ranking.keys(before, chunk, bench)
        bench.kernels.erase_in_rows(before, keys, mask, self.ranking.key_bits, self.count, after)


@dataclass(frozen=True)
class GroupEraser:
    """Keeps the larger half of every group of consecutive inputs, the earliest among equals.

    Attributes:
        ranking: What decides.
        group: How many inputs make a group.
        positions: How many values belong to one input; None where rows of the file are inputs.
    """

    ranking: Ranking
    group: int
    positions: int | None

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk; see `Eraser`."""
        return partial(self._erase, chunk)

    def fork(self) -> "GroupEraser":
        """Give itself, because no chunk depends on another; see `Eraser`."""
        return self

    def _erase(self, chunk: Chunk, before: Bits, after: Bits, bench: Workbench) -> None:
        keys, mask = self.ranking.keys(before, chunk, bench)
        positions = chunk.width if self.positions is None else self.positions
        is_word = before.itemsize == keys.itemsize == np.uint16().nbytes
        if (self.group, positions) == (4, 1) and is_word:
            words, key_words, kept = (
                bits.reshape(-1).view(np.uint64) for bits in (before, keys, after)
            )
            bench.kernels.erase_two_of_four(words, key_words, mask, kept)
            return
        planes, beaten = bench.take("planes", (2, 8, 512), np.uint32)
        shape = (-1, self.group, positions)
        bench.kernels.erase_in_groups(
            before.reshape(shape), keys.reshape(shape), mask, planes, beaten, after.reshape(shape)
        )
