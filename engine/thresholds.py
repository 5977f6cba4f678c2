"""Exact order statistics of a stream that is far larger than memory.

A histogram of magnitudes tells the n-th smallest exactly: 16-bit floats have only 2**15 of them, so
one histogram does it; 32-bit ones take a second look at the values that share the upper 16 bits.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engine import pruning_kernels
from engine.compilation import Bits

_LOW_BITS = 15


@dataclass(frozen=True)
class Threshold:
    """What splits the n smallest magnitudes from the rest.

    Attributes:
        key: The n-th smallest magnitude; 0 where n is 0.
        ties: How many of the magnitudes that equal it belong to the n smallest.
    """

    key: int
    ties: int


def find_threshold(stream: Callable[[], Iterable[Bits]], count: int, *, is_wide: bool) -> Threshold:
    """Find what splits the `count` smallest magnitudes from the rest.

    Args:
        stream: Gives the magnitudes from the first to the last, each time it is called.
        count: How many to split off, at most as many as the stream has.
        is_wide: Whether the magnitudes have 31 bits, which takes two passes, rather than 15.

    Returns:
        The threshold: exactly `count` magnitudes are below its key or among its first ties.
    """
    if count == 0:
        return Threshold(0, 0)
    shift = _LOW_BITS if is_wide else 0
    histogram = np.zeros(1 << (16 if is_wide else 15), np.int64)
    for keys in stream():
        pruning_kernels.count_high(keys, shift, histogram)
    high, ties = _locate(histogram, count)
    if not is_wide:
        return Threshold(high, ties)
    histogram = np.zeros(1 << _LOW_BITS, np.int64)
    for keys in stream():
        pruning_kernels.count_low(keys, shift, high, histogram)
    low, ties = _locate(histogram, ties)
    return Threshold(high << _LOW_BITS | low, ties)


def _locate(histogram: "np.ndarray[tuple[int], np.dtype[np.int64]]", count: int) -> tuple[int, int]:
    cumulative = np.cumsum(histogram)
    place = int(np.searchsorted(cumulative, count))
    return place, count - int(cumulative[place]) + int(histogram[place])
