"""Exact order statistics of a stream that is far larger than memory.

A histogram of keys tells the n-th smallest exactly: magnitudes of 16-bit floats have only 2**15
values, so one histogram does it; longer keys take a second look at those that share the upper bits
of the n-th smallest.
"""

import base64
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine import pruning_kernels
from engine.compilation import Bits, Counts
from engine.crew import Bell
from engine.workbench import Workbench

#: The digits of a key by its length: how many bits are below each, and how many it has.
_DIGITS = {15: ((0, 15),), 31: ((15, 16), (0, 15)), 32: ((16, 16), (0, 16))}


@dataclass(frozen=True)
class Threshold:
    """What splits the n smallest keys from the rest.

    Attributes:
        key: The n-th smallest; 0 where n is 0.
        ties: How many of the keys that equal it belong to the n smallest.
    """

    key: int
    ties: int


#: A histogram packed into text, which takes little memory and space: most of its bytes are 0.
Tally = str


class _Histogram:
    """What one look counts, in parts: so it is known what was counted up to some chunk."""

    def __init__(self, bins: int) -> None:
        self.part = 0
        self._bins = bins
        self._parts: dict[int, Counts] = {}
        self._unread = 0
        self._is_over = False

    def begin_with(self, tally: Tally) -> None:
        packed = zlib.decompress(base64.b64decode(tally))
        self._parts[-1] = np.frombuffer(packed, np.int64).copy()

    def end_part(self) -> int:
        self._unread += 1
        self.part += 1
        return self.part - 1

    def add(self, part: int, counts: Counts) -> None:
        if part not in self._parts:
            self._parts[part] = np.zeros(self._bins, np.int64)
        pruning_kernels.move_counts(counts, self._parts[part])

    def up_to(self, part: int) -> Tally:
        counts = self._parts[part]
        if part - 1 in self._parts:
            counts += self._parts.pop(part - 1)
        self._unread -= 1
        self._let_go()
        return base64.b64encode(zlib.compress(counts.data, 1)).decode()

    def total(self) -> Counts:
        if not self._parts:
            raise ValueError("A measurement needs a stream of at least one key.")
        total = np.zeros(self._bins, np.int64)
        for counts in self._parts.values():
            total += counts
        self._is_over = True
        self._let_go()
        return total

    def _let_go(self) -> None:
        if self._is_over and not self._unread:
            self._parts = {}


class Measurement:
    """Finds what splits the `count` smallest keys of a stream from the rest.

    Args:
        bell: What tasks that wait for others wait at.
        count: How many to split off, at most as many as the stream has.
        key_bits: How long a key is: 15, 31 or 32 bits.
        found: What the first looks found, where they are done already.
        tally: What the next look has counted already; see `counted`.

    Attributes:
        looks: How many times the stream must be looked at.
        found: What each look so far found: the upper bits of the key, and how many of the keys
            that share them belong to the n smallest.
    """

    looks: int
    found: list[Threshold]

    def __init__(
        self,
        bell: Bell,
        count: int,
        key_bits: int,
        found: Iterable[Threshold] = (),
        tally: Tally = "",
    ) -> None:
        self._bell = bell
        self._digits = _DIGITS[key_bits] if count else ()
        self._count = count
        self.found = list(found)
        self._adding = threading.Lock()
        self._open = [1] * len(self._digits)
        self.looks = len(self._digits)
        self._histograms = [_Histogram(1 << digit) for _, digit in self._digits]
        if tally:
            self._histograms[len(self.found)].begin_with(tally)

    def enlist(self, look: int) -> int:
        """Expect one more chunk in a look.

        Args:
            look: Which look, from 0.

        Returns:
            The part of the look that the chunk belongs to.
        """
        with self._adding:
            self._open[look] += 1
            return self._histograms[look].part

    def end_part(self, look: int) -> int:
        """Have the chunks that are enlisted in a look from now on belong to another part.

        Args:
            look: Which look.

        Returns:
            The part that ends here, of which `counted` has to be told.
        """
        with self._adding:
            return self._histograms[look].end_part()

    def counted(self, look: int, part: int) -> Tally:
        """Give what a look has counted up to the end of a part.

        Args:
            look: Which look.
            part: The part. All its chunks have been counted, and all parts before been asked for.

        Returns:
            How often each digit occurred.
        """
        with self._adding:
            return self._histograms[look].up_to(part)

    def close(self, look: int) -> None:
        """Expect no more chunks in a look than those that were enlisted."""
        self._finish_one(look)

    def add(self, look: int, part: int, keys: Bits, mask: int, bench: Workbench) -> None:
        """Count the keys of an enlisted chunk, when what the look needs to know is known.

        Args:
            look: Which look, from 0.
            part: The part that the chunk belongs to.
            keys: The keys.
            mask: Which of their bits count.
            bench: Memory for the chunk's own histogram, which is left empty.
        """
        with self._bell:
            self._bell.wait(lambda: len(self.found) >= look)
        shift, digit = self._digits[look]
        mine = bench.take("histogram", (1 << digit,), np.uint32)
        prefix = self.found[look - 1].key if look else -1
        pruning_kernels.count_digits(keys.reshape(-1), mask, shift, digit, prefix, mine)
        with self._adding:
            self._histograms[look].add(part, mine)
        self._finish_one(look)

    def result(self) -> Threshold:
        """Give the threshold, when every look has ended.

        Returns:
            Exactly `count` keys of the stream are below its key or among the first of its ties.
        """
        with self._bell:
            self._bell.wait(lambda: len(self.found) == self.looks)
        return self._last()

    def _last(self) -> Threshold:
        return self.found[-1] if self.found else Threshold(0, self._count)

    def _finish_one(self, look: int) -> None:
        with self._adding:
            self._open[look] -= 1
            if self._open[look]:
                return
            histogram = self._histograms[look].total()
        last = self._last()
        place, left = pruning_kernels.locate(histogram, last.ties)
        with self._bell:
            key = last.key << self._digits[look][1] | int(place)
            self.found.append(Threshold(key, int(left)))
            self._bell.ring()
