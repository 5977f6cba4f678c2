"""Pruning of tensors whose file holds [inputs, channels]: every column is a channel.

Ties are spent in the order of channels, which is not that of the file. So each column learns first
how many of its ties may go, and then the chunks of a panel of columns hand on how many went.

Dimension key: R rows of a chunk, W columns of it.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from engine import column_kernels
from engine.chunks import Chunk
from engine.compilation import Bits, Counts
from engine.erasers import Erasure
from engine.gatherings import Gathering
from engine.measurements import Measurement
from engine.promises import Promise
from engine.rankings import Ranking
from engine.relays import Relay
from engine.workbench import Workbench


@dataclass(frozen=True)
class Limits:
    """What becomes 0 in the columns of a panel.

    Attributes:
        thresholds: Keys below become 0, [W].
        ties: How many of the first that equal it do too, [W].
    """

    thresholds: Counts
    ties: Counts


@dataclass(frozen=True)
class ColumnEraser:
    """Prunes the smallest of every column of a panel, ties in the order of its rows.

    Attributes:
        ranking: What decides.
        limits: What becomes 0.
        ties: How many ties of each column came before.
    """

    ranking: Ranking
    limits: Promise[Limits]
    ties: Relay[Counts]

    def enlist(self, chunk: Chunk) -> Erasure:
        """Give the erasure of the next chunk; see `erasers.Eraser`."""
        return partial(self._erase, chunk, self.ties.issue())

    def fork(self) -> "ColumnEraser":
        """Go on in another look; see `erasers.Eraser`."""
        return ColumnEraser(self.ranking, self.limits, self.ties.fork())

    def _erase(self, chunk: Chunk, turn: int, before: Bits, after: Bits, bench: Workbench) -> None:
        limits = self.limits.get()
        keys, mask = self.ranking.keys(before, chunk, bench)
        ties = count_ties(keys, mask, limits.thresholds)
        left = np.maximum(limits.ties - self.ties.take(turn, ties), 0)
        column_kernels.erase_smallest(before, keys, mask, limits.thresholds, left, after)


def count_ties(keys: Bits, mask: int, thresholds: Counts) -> Counts:
    """Count every column's keys that equal its threshold, [W]."""
    counts = np.zeros((2, keys.shape[1]), np.int64)
    column_kernels.count_below(keys, mask, thresholds + 1, counts[0])
    column_kernels.count_below(keys, mask, thresholds, counts[1])
    ties: Counts = counts[0] - counts[1]
    return ties


def count_below(keys: Bits, mask: int, limits: Counts) -> Counts:
    """Count every column's keys below its limit, [W]."""
    counts = np.zeros(keys.shape[1], np.int64)
    column_kernels.count_below(keys, mask, limits, counts)
    return counts


def share_ties(measurement: Measurement, counts: Gathering, before: Relay[int]) -> Promise[Limits]:
    """Share the ties of a tensor among the columns of a panel, the first columns first.

    Args:
        measurement: The tensor's threshold.
        counts: Each column's ties in the panel.
        before: The ties in the panels before; this one's turn is the next.

    Returns:
        What becomes 0 in the panel.
    """
    turn = before.issue()

    def share() -> Limits:
        threshold, ties = measurement.result(), counts.result()
        earlier = before.take(turn, int(ties.sum())) + np.cumsum(ties) - ties
        share = np.clip(threshold.ties - earlier, 0, ties)
        return Limits(np.full(ties.size, threshold.key), share)

    return Promise(share)


def halve(thresholds: Promise[Counts], bit: int, counts: Gathering, count: int) -> Promise[Counts]:
    """Find one bit of every column's count-th smallest key.

    Args:
        thresholds: Its bits above.
        bit: Which bit.
        counts: Each column's keys that are below the bits above with this bit set.
        count: How many weights of each column become 0.

    Returns:
        Its bits down to this one.
    """

    def decide() -> Counts:
        above = thresholds.get()
        return np.where(counts.result() < count, above | (1 << bit), above)

    return Promise(decide)
