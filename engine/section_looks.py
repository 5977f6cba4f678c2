"""What a section of a tensor must be looked at for before it is written.

Dimension key: R rows of a chunk, W columns of it.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial

import numpy as np

from engine import column_kernels, float_kernels
from engine.chunks import Chunk, Section
from engine.columns import ColumnEraser, Limits, count_below, count_ties, halve, share_ties
from engine.compilation import Bits, Counts
from engine.crew import Bell, Task
from engine.erasers import Eraser
from engine.gatherings import Gathering
from engine.ledger import StepEntry
from engine.looks import Look, Measuring
from engine.measurements import Measurement
from engine.promises import Promise
from engine.rankings import MAGNITUDE, Ranking
from engine.relays import Relay
from engine.workbench import Workbench
from planning.selection import Target

Strand = Sequence[tuple[int, Eraser]]


class SectionLooks:
    """Looks at a row that is longer than a chunk, or at a panel of columns.

    Args:
        bell: What tasks that wait for others wait at.
        section: What is looked at.
        strand: What prunes it before, with the index of each step.
        look: Makes a look at a chunk.
        entry: Where the cost is counted.
    """

    def __init__(
        self,
        bell: Bell,
        section: Section,
        strand: Strand,
        look: Callable[[Chunk, Strand], Look],
        entry: StepEntry,
    ) -> None:
        self._bell = bell
        self._section = section
        self._strand = strand
        self._look = look
        self._entry = entry

    def share_ties(
        self, ranking: Ranking, measurement: Measurement, before: Relay[int]
    ) -> Generator[Task, None, Eraser]:
        """Share a tensor's ties among the columns of a panel, yielding the looks.

        Args:
            ranking: What decides.
            measurement: The tensor's threshold.
            before: The ties in the panels before.

        Returns:
            What prunes the panel.
        """

        def find(bits: Bits, chunk: Chunk, bench: Workbench) -> Counts:
            keys, mask = ranking.keys(bits, chunk, bench)
            return count_ties(keys, mask, np.full(chunk.width, measurement.result().key))

        counts = yield from self._gather(find, np.add)
        limits = share_ties(measurement, counts, before)
        return ColumnEraser(ranking, limits, self._no_ties())

    def halve(self, ranking: Ranking, count: int) -> Generator[Task, None, Eraser]:
        """Find the `count` smallest of every column, yielding the looks.

        Each look finds one bit of every column's limit.

        Args:
            ranking: What decides.
            count: How many.

        Returns:
            What prunes the panel.
        """
        width = self._section.width
        thresholds: Promise[Counts] = Promise(lambda: np.zeros(width, np.int64))
        for bit in range(ranking.key_bits - 1, -1, -1):
            find = partial(_count_below, ranking, thresholds, 1 << bit)
            counts = yield from self._gather(find, np.add)
            thresholds = halve(thresholds, bit, counts, count)
        below = yield from self._gather(partial(_count_below, ranking, thresholds, 0), np.add)
        limits = Promise(lambda: Limits(thresholds.get(), count - below.result()))
        return ColumnEraser(ranking, limits, self._no_ties())

    def find_peaks(self, target: Target) -> Generator[Task, None, Gathering | None]:
        """Find what the scales of the section need to know, yielding the looks.

        None is needed where the chunks alone can tell.

        Args:
            target: The tensor.

        Returns:
            The largest magnitude of the row or of each column; None where none is needed.
        """
        shape = self._section.extent.shape
        if target.scheme is None or shape not in {"panel", "pieces"} or target.group_size:
            return None
        find = partial(_find_peaks, MAGNITUDE[target.itemsize], is_row=shape == "pieces")
        return (yield from self._gather(find, np.maximum))

    def _gather(
        self,
        find: Callable[[Bits, Chunk, Workbench], Counts],
        combine: Callable[[Counts, Counts], Counts],
    ) -> Generator[Task, None, Gathering]:
        gathering = Gathering(self._bell, combine)
        forks = [(index, eraser.fork()) for index, eraser in self._strand]
        for chunk in self._section.chunks():
            gathering.enlist()
            yield self._finding(self._look(chunk, forks), find, gathering)
        gathering.close()
        return gathering

    def _finding(
        self,
        look: Look,
        find: Callable[[Bits, Chunk, Workbench], Counts],
        gathering: Gathering,
    ) -> Measuring:
        def use(bits: Bits, bench: Workbench) -> None:
            gathering.add(find(bits, look.chunk, bench))

        def settle(seconds: float) -> None:
            self._entry.seconds += seconds
            self._entry.bytes_read += look.nbytes

        return Measuring(look, use, settle)

    def _no_ties(self) -> Relay[Counts]:
        return Relay(self._bell, np.zeros(self._section.width, np.int64))


def _count_below(
    ranking: Ranking,
    thresholds: Promise[Counts],
    bit: int,
    bits: Bits,
    chunk: Chunk,
    bench: Workbench,
) -> Counts:
    keys, mask = ranking.keys(bits, chunk, bench)
    return count_below(keys, mask, thresholds.get() | bit)


def _find_peaks(mask: int, bits: Bits, *_: object, is_row: bool) -> Counts:
    if is_row:
        return np.array([float_kernels.largest(bits.reshape(-1), mask)], np.int64)
    peaks = np.zeros(bits.shape[1], np.int64)
    column_kernels.raise_peaks(bits, mask, peaks)
    return peaks
