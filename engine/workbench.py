"""Where blocks are worked on: memory that every block uses again, and the kernels."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.kernels import Kernels, ProcessorKernels


class Workbench:
    """Arrays by the name of their use; each grows to the largest shape asked of it.

    Args:
        kernels: What computes; the processor's where left out.

    Attributes:
        kernels: What computes.
    """

    kernels: Kernels

    def __init__(self, kernels: Kernels | None = None) -> None:
        self.kernels = kernels or ProcessorKernels()
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Give an array whose values are whatever its last user left.

        Args:
            use: What for. Two arrays in use at one time need two names.
            shape: Its shape.
            dtype: Its dtype.

        Returns:
            A contiguous array, valid until the same name is taken again.
        """
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._memory.get(use)
        if memory is None or memory.nbytes < nbytes:
            memory = self._memory[use] = np.empty(nbytes, np.uint8)
        return memory[:nbytes].view(dtype).reshape(shape)
