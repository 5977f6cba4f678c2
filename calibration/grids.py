"""The int8 values that the artifact's writer will find for a weight, known beforehand.

The writer rounds whatever weights it is given: a channel's or group's scale comes from its largest
magnitude, and each weight goes to the nearest step. So a method that chooses the steps itself hands
over floats from which the writer finds those very steps.

Dimension key: O output channels, I inputs of each, G groups of inputs with a scale of their own.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine import float_kernels, scale_kernels

_KINDS = {
    torch.bfloat16: float_kernels.KINDS["BF16"],
    torch.float16: float_kernels.KINDS["F16"],
    torch.float32: float_kernels.KINDS["F32"],
}
_PATTERNS = {2: torch.uint16, 4: torch.uint32}
_MAGNITUDES = {2: 0x7FFF, 4: 0x7FFFFFFF}


@dataclass(frozen=True)
class Grid:
    """The steps on which a weight may lie.

    Attributes:
        weight: The weight that they were found for, [O, I].
        scales: float32 [O, G].
        peaks: The largest magnitude of each group, float32 [O, G].
    """

    weight: torch.Tensor
    scales: torch.Tensor
    peaks: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, group_size: int | None) -> "Grid":
        """Find the steps of a weight.

        Args:
            weight: [O, I], of float32, float16 or bfloat16.
            group_size: How many consecutive inputs share a scale; None gives a channel one.

        Returns:
            The grid, with the scales that the artifact will hold.
        """
        outputs, inputs = weight.shape
        size = group_size or inputs
        pattern = _PATTERNS[weight.itemsize]
        bits = weight.contiguous().view(pattern).numpy().reshape(-1)
        stored = np.empty(outputs * (inputs // size), bits.dtype)
        mask = bits.dtype.type(_MAGNITUDES[weight.itemsize])
        scale_kernels.find_scales(bits, _KINDS[weight.dtype], mask, size, stored)
        scales = torch.from_numpy(stored).view(weight.dtype).reshape(outputs, -1).float()
        peaks = weight.float().abs().reshape(outputs, -1, size).amax(2)
        return cls(weight, scales, peaks)

    @property
    def group_size(self) -> int:
        """How many consecutive inputs share a scale."""
        return self.weight.shape[1] // self.scales.shape[1]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Give every weight its group's value, [O, G] to [O, I]."""
        return values.repeat_interleave(self.group_size, dim=1)

    def nearest(self) -> torch.Tensor:
        """Give the step nearest to every weight, float32 [O, I], from -128 to 127."""
        return (self.weight.float() / self.spread(self.scales)).round_().clamp_(-128, 127)

    def most(self) -> torch.Tensor:
        """Give the largest step that weights within the peak round to, float32 [O, G]."""
        return (self.peaks / self.scales).round().clamp(max=127)

    def pinned(self) -> torch.Tensor:
        """Say which weights must stay as they are, so that the scales do: one of each group.

        Returns:
            True at the first weight of largest magnitude, bool [O, I].
        """
        grouped = self.weight.float().abs().reshape(*self.scales.shape, -1)
        largest = grouped.argmax(dim=2, keepdim=True)
        pinned = torch.zeros(grouped.shape, dtype=torch.bool).scatter_(2, largest, True)
        return pinned.reshape(self.weight.shape)

    def floats(self, steps: torch.Tensor) -> torch.Tensor:
        """Give weights from which the writer finds these steps.

        Args:
            steps: Whole numbers within `most`, and `nearest` where `pinned`, float32 [O, I].

        Returns:
            Weights of the grid's dtype, [O, I], with the grid's scales; each lies within a quarter
            of a step of its own, but that none is larger than its group's peak.
        """
        values = steps * self.spread(self.scales)
        limit = self.spread(self.peaks)
        rounded = values.clamp_(-limit, limit).to(self.weight.dtype)
        return torch.where(self.pinned(), self.weight, rounded)
