"""Where a thread works on chunks: memory that every chunk uses again, and the kernels."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.kernels import Kernels


class Workbench:
    """The buffers of one thread, each made when it is first used.

    Args:
        sizes: How many bytes each may have, by its use; see `planning.working_set`.
        kernels: What computes.

    Attributes:
        kernels: What computes.
    """

    kernels: Kernels

    def __init__(self, sizes: Mapping[str, int], kernels: Kernels) -> None:
        self.kernels = kernels
        self._sizes = sizes
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Give an array whose values are whatever its last user left; zeros at first.

        Args:
            use: What for. Two arrays in use at one time need two names.
            shape: Its shape.
            dtype: Its dtype.

        Returns:
            A contiguous array, valid until the same name is taken again.

        Raises:
            ValueError: The use was not planned, or is larger than planned.
        """
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes > self._sizes.get(use, 0):
            raise ValueError(f"{use} takes {nbytes} bytes; {self._sizes.get(use, 0)} were planned.")
        if use not in self._memory:
            self._memory[use] = self.kernels.allocate(self._sizes[use])
        return self._memory[use][:nbytes].view(dtype).reshape(shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it holds."""
        return sum(memory.nbytes for memory in self._memory.values())
