"""The loops of rounding and pruning as torch operations, for a device that is not the processor.

Dimension key: C output channels, I inputs of one channel, G groups, M inputs of a group, P places.

Every operation is exact or rounded as IEEE 754 says, so the results have the bytes that
`rounding_kernels` and `pruning_kernels` give; a test compares them. Blocks go to the device and
come back one at a time. Only this module of the streaming core imports torch.
"""

import numpy as np
import numpy.typing as npt
import torch

from engine.compilation import Bits, Counts
from jobs.report import DeviceMemory


class TorchKernels:
    """Computes on a torch device.

    Args:
        device: Its name, such as ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def round_channels(
        self, bits: Bits, shift: int, scales: npt.NDArray[np.float32], rounded: npt.NDArray[np.int8]
    ) -> None:
        """Round to int8; see `rounding_kernels.round_channels`."""
        weight = (self._integers(bits) << shift).to(torch.int32).view(torch.float32)
        ratio = weight / torch.from_numpy(scales).to(self._device)[:, None]
        values = ratio.round_().clamp_(-128, 127).to(torch.int8)
        np.copyto(rounded, values.cpu().numpy())

    def erase_smallest(self, bits: Bits, keys: Bits, thresholds: Bits, ties: Counts) -> None:
        """Zero the smallest, in place; see `pruning_kernels.erase_smallest`."""
        key = self._integers(keys)
        threshold = self._integers(thresholds)[:, None]
        left = torch.from_numpy(ties).to(self._device)
        is_tie = key == threshold
        is_spent = is_tie & (is_tie.cumsum(dim=1) <= left[:, None])
        self._zero(bits, (key < threshold) | is_spent)
        np.copyto(ties, (left - is_spent.sum(dim=1)).cpu().numpy())

    def erase_in_groups(self, bits: Bits, keys: Bits) -> None:
        """Keep half of every group, in place; see `pruning_kernels.erase_in_groups`."""
        key = self._integers(keys)
        size = key.shape[2]
        larger = torch.zeros(key.shape, dtype=torch.uint8, device=self._device)
        for i in range(size):
            for j in range(size):
                wins = key[:, :, j] >= key[:, :, i] if j < i else key[:, :, j] > key[:, :, i]
                larger[:, :, i] += wins
        self._zero(bits, 2 * larger >= size)

    def memory(self) -> DeviceMemory | None:
        """Give the peaks of the device's allocator; None where it keeps no count."""
        if self._device.type != "cuda":
            return None
        return DeviceMemory(
            allocated_peak_bytes=torch.cuda.max_memory_allocated(self._device),
            reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device),
        )

    def _integers(self, values: Bits) -> torch.Tensor:
        # torch has few operations on unsigned integers; int64 holds all of their values.
        signed = np.int16 if values.dtype == np.uint16 else np.int32
        mask = 0xFFFF if values.dtype == np.uint16 else 0xFFFFFFFF
        return torch.from_numpy(values.view(signed)).to(self._device).to(torch.int64) & mask

    def _zero(self, bits: Bits, is_pruned: torch.Tensor) -> None:
        bits[is_pruned.cpu().numpy()] = 0
