"""Weights as int8, symmetric, one scale per output channel.

Dimension key: C output channels, I inputs of one channel.

Scheme: Jacob et al., 2018, arXiv:1712.05877, section 2.1, with zero_point = 0 and 128 steps below
zero, 127 above. The scale is the largest absolute value over 127.5, rounded up to the dtype of the
weight, so a weight and its rounding differ by at most half a scale.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from programs.values import Floats, Raw, round_up, to_floats

_STEPS = np.float32(127.5)
_LEAST_SCALE = {"BF16": 2.0**-126, "F16": 2.0**-24, "F32": 2.0**-126}


@dataclass(frozen=True)
class Rounded:
    """A weight as int8.

    Attributes:
        values: int8, [C, I].
        scales: Of the weight's dtype, [C, 1].
        max_error_steps: Largest difference in units of the scale.
        squared_error: Sum of squared differences.
    """

    values: npt.NDArray[np.int8]
    scales: Raw
    max_error_steps: float
    squared_error: float


def round_weight(weight: Floats, dtype: str) -> Rounded:
    """Round a weight.

    A channel that is all zero gets scale 1, so it comes back exactly zero.

    Args:
        weight: Finite, float32 [C, I].
        dtype: What its scales are stored as: BF16, F16 or F32.

    Returns:
        The weight as int8.
    """
    peaks = np.abs(weight).max(axis=1, keepdims=True)
    wanted = np.maximum(peaks / _STEPS, np.float32(_LEAST_SCALE[dtype]))
    scales = round_up(np.where(peaks == 0, np.float32(1), wanted), dtype)
    floats = to_floats(scales, dtype)
    values = np.clip(np.rint(weight / floats), -128, 127).astype(np.int8)
    difference = np.abs(values * floats - weight)
    return Rounded(
        values,
        scales,
        max_error_steps=float((difference / floats).max(initial=0)),
        squared_error=float(np.square(difference, dtype=np.float64).sum()),
    )
