"""Pruning of a stream of blocks: each eraser remembers where it is, so blocks may have any size.

Dimension key: C output channels, I inputs of one channel.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine import pruning_kernels
from engine.compilation import Bits
from engine.magnitudes import keys_of, wide_keys_of
from engine.workbench import Workbench


class Eraser(Protocol):
    """Sets weights of consecutive blocks to +0."""

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:
        """Prune the next block, in place.

        Args:
            bits: Bit patterns, [rows, width].
            dtype: Their safetensors dtype.
            bench: Memory for what is computed on the way.

        Returns:
            How many weights were chosen.
        """
        ...


@dataclass
class ThresholdEraser:
    """Prunes the smallest magnitudes, ties in the order of the stream.

    Attributes:
        key: Magnitudes below it become 0.
        ties: How many that equal it are still to become 0.
        is_wide: Whether `key` has the order of float32 rather than that of the weight's dtype.
    """

    key: int
    ties: int
    is_wide: bool

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:
        """Prune the next block, in place; see `Eraser`."""
        keys = wide_keys_of(bits, dtype, bench) if self.is_wide else keys_of(bits, bench)
        ties = np.array([self.ties])
        threshold = np.full_like(keys[:1].reshape(-1)[:1], self.key)
        below = int(np.count_nonzero(keys < self.key))
        bench.kernels.erase_smallest(bits.reshape(1, -1), keys.reshape(1, -1), threshold, ties)
        spent = self.ties - int(ties[0])
        self.ties = int(ties[0])
        return below + spent


@dataclass
class DrawEraser:
    """Prunes an exact number of weights drawn from the whole stream.

    Attributes:
        seed: Seed of the draws.
        left: How many weights of the stream are still to come.
        picks: How many of those become 0.
        position: How many have passed.
    """

    seed: int
    left: int
    picks: int
    position: int = 0

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:  # noqa: ARG002
        """Prune the next block, in place; see `Eraser`."""
        left, picks = np.array([self.left]), np.array([self.picks])
        pruning_kernels.erase_drawn(
            bits.reshape(1, -1), np.uint64(self.seed), self.position, left, picks
        )
        chosen = self.picks - int(picks[0])
        self.left, self.picks = int(left[0]), int(picks[0])
        self.position += bits.size
        return chosen


@dataclass
class ChannelEraser:
    """Prunes the same number of weights, the smallest, in every channel.

    Attributes:
        count: How many.
    """

    count: int

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:  # noqa: ARG002
        """Prune the next block, in place; see `Eraser`."""
        if self.count == 0:
            return 0
        keys = keys_of(bits, bench)
        ordered = bench.take("ordered", keys.shape, keys.dtype)
        np.copyto(ordered, keys)
        ordered.partition(self.count - 1, axis=1)
        thresholds: Bits = ordered[:, self.count - 1].copy()
        ties = self.count - np.count_nonzero(ordered < thresholds[:, None], axis=1)
        bench.kernels.erase_smallest(bits, keys, thresholds, ties)
        return self.count * len(bits)


@dataclass
class ChannelDrawEraser:
    """Prunes the same number of weights, drawn, in every channel.

    Attributes:
        seed: Seed of the draws.
        count: How many.
        position: How many weights have passed.
    """

    seed: int
    count: int
    position: int = 0

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:  # noqa: ARG002
        """Prune the next block, in place; see `Eraser`."""
        channels, inputs = bits.shape
        pruning_kernels.erase_drawn(
            bits,
            np.uint64(self.seed),
            self.position,
            np.full(channels, inputs),
            np.full(channels, self.count),
        )
        self.position += bits.size
        return self.count * len(bits)


@dataclass
class GroupEraser:
    """Keeps half of every group of consecutive inputs: the largest, or a draw.

    Attributes:
        group: How many inputs make a group.
        positions: How many values belong to one input.
        seed: Seed of the draws; None keeps the largest, the earliest among equals.
        position: How many weights have passed.
    """

    group: int
    positions: int
    seed: int | None
    position: int = 0

    def erase(self, bits: Bits, dtype: str, bench: Workbench) -> int:  # noqa: ARG002
        """Prune the next block, in place; see `Eraser`."""
        if self.seed is None:
            keys = keys_of(bits, bench)
        else:
            keys = bench.take("draws", bits.shape, np.uint32)
            pruning_kernels.draw_keys(keys, np.uint64(self.seed), self.position)
        grouped = (bits.shape[0], -1, self.group, self.positions)
        bench.kernels.erase_in_groups(bits.reshape(grouped), keys.reshape(grouped))
        self.position += bits.size
        return bits.size // 2
