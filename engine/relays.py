"""Running totals along the stream of chunks, although chunks are worked on side by side."""

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from engine.crew import Bell

Total = TypeVar("Total", int, npt.NDArray[np.int64])


class Relay(Generic[Total]):
    """A total that every chunk adds to, and of which each learns what the ones before it added.

    Args:
        bell: What tasks that wait for others wait at.
        start: The total before the first chunk; None where another relay will tell.
    """

    def __init__(self, bell: Bell, start: Total | None) -> None:
        self._bell = bell
        self._total: Total | None = start
        self._issued = 0
        self._taken = 0
        self._forks: list[tuple[int, Relay[Total]]] = []

    def issue(self) -> int:
        """Give the next chunk of the stream its turn."""
        self._issued += 1
        return self._issued - 1

    def take(self, turn: int, amount: Total) -> Total:
        """Add what a chunk has, when all chunks before it have done so.

        Args:
            turn: The chunk's turn.
            amount: What it adds.

        Returns:
            The total before it.
        """
        with self._bell:
            self._bell.wait(lambda: self._taken == turn and self._total is not None)
            before = self._total
            assert before is not None  # noqa: S101 - it was waited for
            self._total = before + amount
            self._taken += 1
            self._inform()
            self._bell.ring()
        return before

    def fork(self) -> "Relay[Total]":
        """Give a relay that starts with the total after all turns that were issued so far."""
        fork: Relay[Total] = Relay(self._bell, None)
        with self._bell:
            self._forks.append((self._issued, fork))
            self._inform()
        return fork

    def total(self) -> Total:
        """Give the total before the first turn that was not taken; it must be known."""
        assert self._total is not None  # noqa: S101 - what it depends on is done
        return self._total

    def _inform(self) -> None:
        if self._total is None:
            return
        waiting = []
        for turn, fork in self._forks:
            if turn == self._taken:
                fork._total = self._total  # noqa: SLF001 - of its own kind
                fork._inform()  # noqa: SLF001
            else:
                waiting.append((turn, fork))
        self._forks = waiting


#: Totals of ties, by the index of the step that meets them.
Relays = dict[int, Relay[int]]
