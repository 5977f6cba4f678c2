"""The loops that a device has versions of, and which version a job uses."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from engine import pruning_kernels, rounding_kernels
from engine.compilation import Bits, Counts
from jobs.report import DeviceMemory


class Kernels(Protocol):
    """What a device must do; every implementation gives the same bytes."""

    def round_channels(
        self, bits: Bits, shift: int, scales: npt.NDArray[np.float32], rounded: npt.NDArray[np.int8]
    ) -> None:
        """Round to int8; see `rounding_kernels.round_channels`."""
        ...

    def erase_smallest(self, bits: Bits, keys: Bits, thresholds: Bits, ties: Counts) -> None:
        """Zero the smallest, in place; see `pruning_kernels.erase_smallest`."""
        ...

    def erase_in_groups(self, bits: Bits, keys: Bits) -> None:
        """Keep half of every group, in place; see `pruning_kernels.erase_in_groups`."""
        ...

    def memory(self) -> DeviceMemory | None:
        """Give the peaks of the device's memory; None where it is the host's."""
        ...


class ProcessorKernels:
    """Computes on the processor, by numba."""

    round_channels = staticmethod(rounding_kernels.round_channels)
    erase_smallest = staticmethod(pruning_kernels.erase_smallest)
    erase_in_groups = staticmethod(pruning_kernels.erase_in_groups)

    def memory(self) -> DeviceMemory | None:
        """Give None: it is the host's memory."""
        return None


def kernels_for(device: Literal["cpu", "cuda"]) -> Kernels:
    """Give the kernels of a device; ``cuda`` imports torch."""
    if device == "cpu":
        return ProcessorKernels()
    from engine.torch_kernels import TorchKernels  # noqa: PLC0415 - a runner stays small

    return TorchKernels(device)
