"""Values as int8 will hold them, which gradients pass as if they had not been rounded.

Dimension key: C output channels, G groups of inputs with a scale of their own, I inputs of a group.

Scheme: Jacob et al., 2018, arXiv:1712.05877, section 3, with the scales of the engine, which follow
the weights from step to step. Gradients pass straight through: Bengio et al., 2013,
arXiv:1308.3432, section 5; as the scale is that of the largest value, none lies out of range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.column_kernels import find_scales
from engine.float_kernels import KINDS
from evaluation.weight_files import DTYPES

#: The integers and the unsigned ones that have the bits of a dtype.
_PATTERNS = {
    "BF16": (torch.int16, np.uint16),
    "F16": (torch.int16, np.uint16),
    "F32": (torch.int32, np.uint32),
}
#: As of compressed-tensors, whose tokens have a range of 255 steps.
_STEPS = 127.5


@dataclass(frozen=True)
class WeightRounding:
    """How a weight will be rounded, and how it will be held by whoever opens the artifact.

    Attributes:
        stored: The dtype in which it is written before it is rounded, as safetensors names it.
        held: The dtype in which loaders multiply values with scales.
        group_size: How many consecutive inputs share a scale; None gives every channel one.
        is_transposed: Whether the channels are its columns.
    """

    stored: str
    held: torch.dtype
    group_size: int | None = None
    is_transposed: bool = False

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """Round a weight.

        Args:
            weight: float32, of two or more dimensions; channels come first unless it is transposed.

        Returns:
            A new tensor, float32, of the same shape: equal to the bit to what loaders make of the
            int8 values and scales into which the engine rounds the weight. Zeros stay zero.
        """
        stored = weight.to(DTYPES[self.stored])
        if self.is_transposed:
            channels = stored.T.unsqueeze(1)
        else:
            inputs = stored[0].numel()
            channels = stored.reshape(len(stored), -1, self.group_size or inputs)
        scale = self._scales(channels)
        floats = (channels.float() / scale).clamp_(-128, 127).round_()
        floats = floats.mul_(scale.to(self.held).float()).to(self.held).float()
        return floats.squeeze(1).T if self.is_transposed else floats.reshape(weight.shape)

    def _scales(self, channels: torch.Tensor) -> torch.Tensor:
        """Give the engine's scales, float32 [C, G, 1], of weights [C, G, I]."""
        least, most = channels.aminmax(dim=2, keepdim=True)
        peaks = torch.maximum(least.abs(), most.abs())
        signed, unsigned = _PATTERNS[self.stored]
        patterns = peaks.view(signed).flatten().to(torch.int64).cpu().numpy()
        scales = np.empty(len(patterns), np.float32)
        find_scales(patterns, KINDS[self.stored], np.empty(len(patterns), unsigned), scales)
        return torch.from_numpy(scales).to(channels.device).view(peaks.shape)


def round_tokens(given: torch.Tensor) -> torch.Tensor:
    """Round what a Linear is given, each token with a scale of its own.

    Args:
        given: Floats, a token's in the last dimension.

    Returns:
        A new tensor: what loaders of w8a8 make of it when the artifact is run.
    """
    least, most = given.aminmax(dim=-1, keepdim=True)
    scale = torch.maximum(least.abs(), most.abs()) / _STEPS
    scale = scale.where(scale != 0, torch.finfo(scale.dtype).eps)
    return (given / scale).clamp_(-128, 127).round_().mul_(scale)


def straight_through(
    values: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Round values whose gradient shall be that of what they were rounded to.

    Args:
        values: Any.
        rounding: Gives a new tensor of the same shape.

    Returns:
        What it gives. Nothing is kept for gradients.
    """
    found: torch.Tensor = _StraightThrough.apply(values, rounding)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        _context: Any,  # noqa: ANN401 - torch has no type for it
        values: torch.Tensor,
        rounding: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        return rounding(values)

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        return gradient, None
