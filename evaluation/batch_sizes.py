"""How many rows fit into memory together: found out by running few.

A cell is one token of a batch, padding included, or a row where rows have no tokens. What a batch
takes beyond the level is taken to grow with its cells at most, and of rows longer than any that
was run with their square, as attention may.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel

from jobs.inference import Probe
from jobs.problems import Detail, Problem

#: What peaks of equal batches differ by: threads' arenas, pages of libraries used for once.
_NOISE_BYTES = 2 * 1024**2
#: Two peaks this far apart are a line; nearer ones are mostly noise.
_TELLING_BYTES = 4 * 1024**2
#: Left free of the budget.
_MARGIN_BYTES = 8 * 1024**2
#: A batch is at most so many times as large as any before it.
_GROWTH = 4
#: Beyond this many rows or cells, nothing becomes faster.
_MOST_ROWS = 256
_MOST_CELLS = 16_384
_MOST_PROBES = 64


@dataclass(frozen=True)
class Fit:
    """A line through peaks.

    Attributes:
        base_bytes: Its level without any cell.
        cell_bytes: Of memory, for each cell.
    """

    base_bytes: float
    cell_bytes: float


class SizerState(BaseModel, extra="forbid"):
    """What a sizer knows, for another one to go on from.

    Attributes:
        level_bytes: What the process held between batches.
        most_bytes: What it was to stay below without a budget.
        most_peak: The largest peak.
        most_cells: Of the largest batch.
        longest: Tokens of the longest row.
        largest: The most rows that were run together.
        probes: The batches that told something.
    """

    level_bytes: int
    most_bytes: int
    most_peak: int
    most_cells: int
    longest: int
    largest: int
    probes: list[Probe]


class BatchSizer:
    """Chooses how many rows are run together.

    Args:
        budget_bytes: What the process may hold; None where nobody minds.
        rows: How many rows the recipe wants together; None for as many as fit.
        level_bytes: What it holds between batches, once it has run something.
        free_bytes: What the machine has left; without a budget, half of it is used at most.

    Attributes:
        probes: The batches that were larger than all before them, or took more.
        largest: The most rows that were run together.
    """

    probes: list[Probe]
    largest: int

    def __init__(
        self, budget_bytes: int | None, rows: int | None, level_bytes: int, free_bytes: int
    ) -> None:
        self._budget = budget_bytes
        self._most = level_bytes + free_bytes // 2
        self._wanted = rows
        self._level = level_bytes
        self._most_peak = level_bytes
        self._most_cells = 0
        self._longest = 0
        self.probes = []
        self.largest = 0

    @classmethod
    def resumed(cls, budget_bytes: int | None, rows: int | None, state: SizerState) -> Self:
        """Give one that chooses as the one would have whose state it is.

        Args:
            budget_bytes: What the process may hold.
            rows: How many rows the recipe wants together.
            state: Of a process that opened the same model.

        Returns:
            The sizer.
        """
        sizer = cls(budget_bytes, rows, state.level_bytes, 0)
        sizer._most = state.most_bytes
        sizer._most_peak = state.most_peak
        sizer._most_cells = state.most_cells
        sizer._longest = state.longest
        sizer.largest = state.largest
        sizer.probes = list(state.probes)
        return sizer

    @property
    def state(self) -> SizerState:
        """What it knows by now."""
        return SizerState(
            level_bytes=self._level,
            most_bytes=self._most,
            most_peak=self._most_peak,
            most_cells=self._most_cells,
            longest=self._longest,
            largest=self.largest,
            probes=self.probes,
        )

    @property
    def fit(self) -> Fit | None:
        """The line through the peaks of the smallest and the largest batch; None where too near."""
        # Of equal batches the last: what the first one touched for once is no longer counted.
        by_cells = {probe.cells: probe.peak_bytes for probe in self.probes}
        least, most = min(by_cells, default=0), max(by_cells, default=0)
        if not by_cells or by_cells[most] - by_cells[least] < _TELLING_BYTES:
            return None
        cell_bytes = (by_cells[most] - by_cells[least]) / (most - least)
        return Fit(by_cells[least] - cell_bytes * least, cell_bytes)

    def predict(self, rows: int, length: int) -> int:
        """Predict the peak of a batch, rather too large than too small.

        Args:
            rows: How many rows.
            length: Tokens of the longest; 1 where rows have none.

        Returns:
            Bytes; about the level where nothing was observed.
        """
        stretched = max(1.0, length / self._longest) if self._longest else 1.0
        grown = max(1.0, rows * length * stretched / max(1, self._most_cells))
        beyond = (self._most_peak - self._level) * (grown if self._most_cells else 1.0)
        return self._level + round(beyond) + _NOISE_BYTES

    def rows_for(self, length: int, left: int) -> int:
        """Choose how many rows are run next.

        Args:
            length: Tokens of the longest row; 1 where rows have none.
            left: How many there are.

        Returns:
            At least 1.

        Raises:
            Problem: `memory_budget_exceeded`, with the smallest budget that works: not even one
                row fits, or not as many as the recipe wants.
        """
        if self._budget is None and self._wanted is not None:
            return min(self._wanted, left)
        self.require(1, length)
        most = min(left, self._wanted or min(_MOST_ROWS, max(1, _MOST_CELLS // length)))
        # The nearer the batches by which it is told, the surer it is what this one takes.
        most = min(most, max(1, _GROWTH * self._most_cells // length))
        if self._wanted is not None:
            if not self._fits(most, length):
                self.require(min(self._wanted, left), length)
            return most
        while most > 1 and not self._fits(most, length):
            most -= max(1, most // 8)
        return most

    def require(self, rows: int, length: int, *, in_the_end: int = 0) -> None:
        """Refuse a batch that would not fit.

        Args:
            rows: How many rows.
            length: Tokens of the longest; 1 where rows have none.
            in_the_end: The same of what is to be run after it, which the refusal then names.

        Raises:
            Problem: `memory_budget_exceeded`, with the smallest budget that works.
        """
        if self._budget is not None and not self._fits(rows, length):
            longest = max(length, in_the_end)
            raise self._refusal(self.predict(rows, longest) + _MARGIN_BYTES, rows, longest)

    def observe(self, rows: int, length: int, peak_bytes: int) -> None:
        """Learn what a batch took.

        Args:
            rows: How many rows it had.
            length: Tokens of the longest; 1 where rows have none.
            peak_bytes: The process's resident peak meanwhile.

        Raises:
            Problem: `memory_budget_exceeded`: it was more than the budget.
        """
        cells = rows * length
        is_larger = cells > self._most_cells or length > self._longest
        if len(self.probes) < _MOST_PROBES and (is_larger or peak_bytes > self._most_peak):
            self.probes.append(Probe(rows=rows, cells=cells, peak_bytes=peak_bytes))
        self._most_cells = max(self._most_cells, cells)
        self._longest = max(self._longest, length)
        self._most_peak = max(self._most_peak, peak_bytes)
        self.largest = max(self.largest, rows)
        if self._budget is not None and peak_bytes > self._budget:
            raise self._refusal(peak_bytes + _MARGIN_BYTES, rows, length)

    def _fits(self, rows: int, length: int) -> bool:
        most = self._most if self._budget is None else self._budget - _MARGIN_BYTES
        return self.predict(rows, length) <= most

    def _refusal(self, smallest: int, rows: int, length: int) -> Problem:
        what = "One row" if rows == 1 else f"A batch of {rows} rows"
        tokens = f" of {length} tokens" if length > 1 else ""
        instead = "" if rows == 1 else " Or leave batch_size out, which finds what fits."
        detail = (
            f"{what}{tokens} needs {smallest} bytes; budget.host_memory is {self._budget}. "
            f"The smallest that works is {smallest}.{instead}"
        )
        extra = {
            "predicted_bytes": smallest,
            "budget_bytes": self._budget,
            "smallest_bytes": smallest,
        }
        errors = [Detail("/budget/host_memory", "memory_budget_exceeded", detail)]
        return Problem("memory_budget_exceeded", detail, errors=errors, extra=extra)
