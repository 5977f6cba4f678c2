"""The loops that a device has versions of, and which version a job uses."""

from typing import Literal, Protocol

import numpy as np

from engine import float_kernels, group_kernels, pruning_kernels, rounding_kernels
from engine.compilation import Bits, Bytes, Integer, Tallies
from jobs.report import DeviceMemory


class Kernels(Protocol):
    """What a device must do; every implementation gives the same bytes. One thread uses each."""

    def allocate(self, nbytes: int) -> Bytes:
        """Give memory of the host that the device reaches, zeroed."""
        ...

    def round_rows(
        self,
        before: Bits,
        after: Bits,
        is_pruned: bool,
        kind: Integer,
        mask: Integer,
        group_size: Integer,
        stored: Bits,
        flip: Integer,
        rounded: Bytes,
        scratch: Bits,
        tallies: Tallies,
    ) -> None:
        """Round to int8; see `rounding_kernels.round_rows`."""
        ...

    def count_equal(self, keys: Bits, mask: Integer, wanted: Integer) -> Integer:
        """Count keys; see `float_kernels.count_equal`."""
        ...

    def erase_smallest(
        self,
        before: Bits,
        keys: Bits,
        mask: Integer,
        threshold: Integer,
        ties: Integer,
        after: Bits,
    ) -> None:
        """Copy, zeroing the smallest; see `pruning_kernels.erase_smallest`."""
        ...

    def erase_in_rows(
        self,
        before: Bits,
        keys: Bits,
        mask: Integer,
        key_bits: Integer,
        count: Integer,
        after: Bits,
    ) -> None:
        """Copy, zeroing the smallest of every row; see `pruning_kernels.erase_in_rows`."""
        ...

    def erase_in_groups(
        self, before: Bits, keys: Bits, mask: Integer, planes: Bits, beaten: Bits, after: Bits
    ) -> None:
        """Copy, zeroing half of every group; see `group_kernels.erase_in_groups`."""
        ...

    def erase_two_of_four(self, before: Bits, keys: Bits, mask: Integer, after: Bits) -> None:
        """Copy, zeroing two of every four; see `group_kernels.erase_two_of_four`."""
        ...

    def memory(self) -> DeviceMemory | None:
        """Give the peaks of the device's memory; None where it is the host's."""
        ...


class ProcessorKernels:
    """Computes on the processor, by numba."""

    round_rows = staticmethod(rounding_kernels.round_rows)
    count_equal = staticmethod(float_kernels.count_equal)
    erase_smallest = staticmethod(pruning_kernels.erase_smallest)
    erase_in_rows = staticmethod(pruning_kernels.erase_in_rows)
    erase_in_groups = staticmethod(group_kernels.erase_in_groups)
    erase_two_of_four = staticmethod(group_kernels.erase_two_of_four)

    def allocate(self, nbytes: int) -> Bytes:
        """Give zeroed memory."""
        return np.zeros(nbytes, np.uint8)

    def memory(self) -> DeviceMemory | None:
        """Give None: it is the host's memory."""
        return None


def kernels_for(device: Literal["cpu", "cuda"], limit_bytes: int | None = None) -> Kernels:
    """Give the kernels of a device for one thread; ``cuda`` imports torch.

    Args:
        device: Which.
        limit_bytes: The most that the process may reserve on a GPU; None for all there is.

    Returns:
        The kernels.
    """
    if device == "cpu":
        return ProcessorKernels()
    from engine.torch_kernels import TorchKernels  # noqa: PLC0415 - a runner stays small

    return TorchKernels(device, limit_bytes)
