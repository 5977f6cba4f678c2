"""How far a job is, told a few hundred times at most."""

from collections.abc import Callable
from dataclasses import dataclass

_REPORTS_PER_PHASE = 200


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: ``inspect``, ``score`` (choosing what a shrink step keeps), ``measure`` (finding
            thresholds across tensors), ``compress`` or, in a
            process of its own, ``verify``.
        step: Which step of the recipe, counted from 1; the last one while all are applied.
        steps: How many steps the recipe has.
        done: How much of the phase is done.
        total: How much the phase has.
        unit: What is counted: ``bytes`` or ``tensors``.
        loss: Of the last step of a training.
        rows_per_second: Of a training, so far.
    """

    phase: str
    step: int
    steps: int
    done: int
    total: int
    unit: str
    loss: float | None = None
    rows_per_second: float | None = None


class Ticker:
    """Turns many small advances of one phase into few reports.

    Args:
        report: What is told.
        start: The phase at its beginning.
    """

    def __init__(self, report: Callable[[Progress], None], start: Progress) -> None:
        self._report = report
        self._start = start
        self._done = 0
        self._next = 0
        self.advance(0)

    def advance(self, amount: int) -> None:
        """Count what was done, and report where that is worth it."""
        self._done += amount
        start = self._start
        if self._done >= self._next or self._done == start.total:
            self._next = self._done + max(1, start.total // _REPORTS_PER_PHASE)
            self._report(
                Progress(start.phase, start.step, start.steps, self._done, start.total, start.unit)
            )
