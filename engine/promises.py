"""Values that are computed when they are first asked for."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Promise(Generic[Value]):
    """A value that whoever asks first computes, while the others wait.

    Args:
        compute: Computes it; let go of afterwards.
    """

    def __init__(self, compute: Callable[[], Value]) -> None:
        self._lock = threading.Lock()
        self._compute: Callable[[], Value] | None = compute
        self._values: list[Value] = []

    def get(self) -> Value:
        """Give the value."""
        with self._lock:
            if self._compute is not None:
                self._values.append(self._compute())
                self._compute = None
            return self._values[0]
