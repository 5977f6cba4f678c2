"""What several chunks find out together about each column that they share."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.crew import Bell

Found = npt.NDArray[np.int64]


class Gathering:
    """Combines what the chunks of a section found, one number for each of its columns.

    Args:
        bell: What tasks that wait for others wait at.
        combine: Puts two findings together, in any order.
    """

    def __init__(self, bell: Bell, combine: Callable[[Found, Found], Found]) -> None:
        self._bell = bell
        self._combine = combine
        self._open = 1
        self._found: Found | None = None

    def enlist(self) -> None:
        """Expect one more chunk."""
        with self._bell:
            self._open += 1

    def close(self) -> None:
        """Expect no more chunks than those that were enlisted."""
        with self._bell:
            self._open -= 1
            self._bell.ring()

    def add(self, found: Found) -> None:
        """Take what an enlisted chunk found."""
        with self._bell:
            self._found = found if self._found is None else self._combine(self._found, found)
            self._open -= 1
            self._bell.ring()

    def result(self) -> Found:
        """Give what all chunks found, when all have."""
        with self._bell:
            self._bell.wait(lambda: self._open == 0)
        if self._found is None:
            raise ValueError("There were no chunks.")
        return self._found
