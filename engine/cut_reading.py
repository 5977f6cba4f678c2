"""Reads tensors as they are once heads or channels are left out of them.

A shrunk model is never written down before it is pruned and rounded: whoever reads a tensor of it
gets what is kept, gathered from the model's own file. Rows that are kept and neighbours are read at
once; for kept columns whole rows are read, some at a time, and the columns taken from them.

Dimension key: P kept positions along an axis of a tensor.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits, Bytes
from engine.workbench import Workbench
from jobs.problems import Problem
from planning.cuts import Cut
from planning.stacks import Part
from planning.working_set import CUT_BYTES

Positions = npt.NDArray[np.int64]
#: By the name of a group, which of its heads or channels are kept, in order.
Kept = Mapping[str, Positions]


@dataclass(frozen=True)
class Home:
    """Where a tensor lies.

    Attributes:
        file: The model's file.
        start: Which of its bytes is the tensor's first.
        columns: How many values a row has.
    """

    file: int
    start: int
    columns: int

    def read(self, values: Bits, row: int, column: int) -> None:
        """Fill memory with consecutive values."""
        place = row * self.columns + column
        read_into(self.file, values, self.start + place * values.itemsize)


def positions_of(units: Positions, parts: tuple[Part, ...]) -> Positions:
    """Give the places along an axis that belong to some heads or channels, in order, [P]."""
    places = [
        part.start + units[:, None] * part.width + np.arange(part.width, dtype=np.int64)
        for part in parts
    ]
    return np.concatenate([place.reshape(-1) for place in places])


class CutReader:
    """Reads what is kept of tensors.

    Args:
        kept: Which heads and channels.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        # Every chunk of a tensor asks for them, and tensors of one layer for the same ones.
        self._positions = lru_cache(maxsize=8)(self._find_positions)

    def fill(
        self, values: Bits, cut: Cut, file: int, start: int, first: int, bench: Workbench
    ) -> None:
        """Fill memory with consecutive elements of what is kept of a tensor.

        Args:
            values: Where they go, one dimension.
            cut: What is kept.
            file: The model's file.
            start: Where in it the whole tensor begins.
            first: Which of the kept elements is the first.
            bench: Where rows lie from which columns are taken, as ``"cut"``.

        Raises:
            Problem: `invalid_checkpoint`: the file ended early.
        """
        positions, ends = self._positions(cut.group.name, cut.parts)
        home = Home(file, start, cut.source.shape[-1])
        is_by_row = cut.axis == 0 and len(cut.source.shape) > 1
        while values.size:
            if is_by_row:
                done = _fill_rows(values, positions, ends, home, first)
            else:
                done = _fill_columns(values, positions, home, first, bench)
            values, first = values[done:], first + done

    def _find_positions(self, group: str, parts: tuple[Part, ...]) -> tuple[Positions, Positions]:
        """Give the kept positions, and where among them those end that are neighbours."""
        positions = positions_of(self._kept[group], parts)
        ends = np.append(np.flatnonzero(np.diff(positions) != 1) + 1, len(positions))
        return positions, ends


def _fill_rows(values: Bits, positions: Positions, ends: Positions, home: Home, first: int) -> int:
    """Read as many elements as are neighbours in the file, and say how many those are."""
    row, column = divmod(first, home.columns)
    end = int(ends[np.searchsorted(ends, row, "right")])
    count = min(values.size, (end - row) * home.columns - column)
    home.read(values[:count], int(positions[row]), column)
    return count


def _fill_columns(
    values: Bits, positions: Positions, home: Home, first: int, bench: Workbench
) -> int:
    """Read some rows, or a part of a long one, and say how many elements were taken from them."""
    limit, columns, width = CUT_BYTES // values.itemsize, home.columns, len(positions)
    row, column = divmod(first, width)
    if column == 0 and values.size >= width and columns <= limit:
        rows = min(values.size // width, limit // columns)
        memory = bench.take("cut", (rows, columns), values.dtype)
        home.read(memory, row, 0)
        taken = values[: rows * width].reshape(rows, width)
        # Positions are known to lie inside, and any other mode would take them into a copy first.
        np.take(memory, positions, axis=1, out=taken, mode="clip")
        return rows * width
    wanted = positions[column : min(width, column + values.size)]
    low = int(wanted[0])
    wanted = wanted[: np.searchsorted(wanted, low + limit)] - low
    memory = bench.take("cut", (int(wanted[-1]) + 1,), values.dtype)
    home.read(memory, row, low)
    np.take(memory, wanted, out=values[: len(wanted)], mode="clip")
    return len(wanted)


def read_into(file: int, values: Bits | Bytes, offset: int) -> None:
    """Fill memory with consecutive bytes of a file.

    Args:
        file: The file.
        values: Where they go, contiguous.
        offset: Which of its bytes is the first.

    Raises:
        Problem: `invalid_checkpoint`: the file ended early.
    """
    view = values.reshape(-1).view(np.uint8).data
    while view.nbytes:
        got = os.preadv(file, [view], offset)
        if got == 0:
            raise Problem("invalid_checkpoint", f"A file ended at byte {offset}, inside a tensor.")
        view, offset = view[got:], offset + got
