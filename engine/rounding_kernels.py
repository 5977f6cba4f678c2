"""The loops of int8 rounding, compiled.

Dimension key: C output channels, I inputs of one channel.
"""

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits, kernel

#: Adding and taking away 1.5 * 2**23 rounds a float32 of this size to the nearest integer, ties to
#: even, in two vector instructions.
_ROUNDER = np.float32(12582912.0)


@kernel(
    "void(uint16[:, ::1], uint32, float32[::1], int8[:, ::1])",
    "void(uint32[:, ::1], uint32, float32[::1], int8[:, ::1])",
)
def round_channels(
    bits: Bits, shift: int, scales: npt.NDArray[np.float32], rounded: npt.NDArray[np.int8]
) -> None:
    """Write ``clamp(round_half_even(weight / scale), -128, 127)``.

    Args:
        bits: Bit patterns, [C, I].
        shift: What turns a pattern into that of the float32 of equal value: 16 for BF16, 0 for F32.
        scales: One float32 scale per channel, [C]; none is 0.
        rounded: Where the int8 values go, [C, I].
    """
    channels, inputs = bits.shape
    pattern = np.empty(inputs, np.uint32)
    weight = pattern.view(np.float32)
    for channel in range(channels):
        scale = scales[channel]
        for i in range(inputs):
            pattern[i] = np.uint32(bits[channel, i]) << shift
        for i in range(inputs):
            ratio = weight[i] / scale
            ratio = max(min(ratio, np.float32(127.0)), np.float32(-128.0))
            rounded[channel, i] = np.int8((ratio + _ROUNDER) - _ROUNDER)


@kernel(
    "UniTuple(float64, 3)(uint16[:, ::1], uint16[:, ::1], uint32, float32[::1], int8[:, ::1])",
    "UniTuple(float64, 3)(uint32[:, ::1], uint32[:, ::1], uint32, float32[::1], int8[:, ::1])",
    reorder_sums=True,
)
def rounding_errors(
    before: Bits,
    after: Bits,
    shift: int,
    scales: npt.NDArray[np.float32],
    rounded: npt.NDArray[np.int8],
) -> tuple[float, float, float]:
    """Compare int8 values with the weights that came in and with the ones that were rounded.

    Args:
        before: Bit patterns as they came in, [C, I].
        after: Bit patterns after pruning, [C, I].
        shift: As in `round_channels`.
        scales: One float32 scale per channel, [C].
        rounded: The int8 values, [C, I].

    Returns:
        The sum of squared differences to `before`, the sum of squares of `before`, and the largest
        difference to `after` in units of the scale.
    """
    channels, inputs = before.shape
    pattern = np.empty((2, inputs), np.uint32)
    weight = pattern.view(np.float32)
    restored = np.empty(inputs, np.float32)
    distance = np.empty(inputs, np.float32)
    distance_bits = distance.view(np.uint32)
    squared_error = 0.0
    squares = 0.0
    worst = 0.0
    for channel in range(channels):
        scale = scales[channel]
        for i in range(inputs):
            pattern[0, i] = np.uint32(before[channel, i]) << shift
            pattern[1, i] = np.uint32(after[channel, i]) << shift
        for i in range(inputs):
            restored[i] = np.float32(rounded[channel, i]) * scale
            distance[i] = abs(weight[1, i] - restored[i])
        for i in range(inputs):
            original = np.float64(weight[0, i])
            difference = original - np.float64(restored[i])
            squared_error += difference * difference
            squares += original * original
        # Positive floats have the order of their bit patterns, and integers compare in vectors.
        largest = np.uint32(0)
        for i in range(inputs):
            largest = max(largest, distance_bits[i])
        distance_bits[0] = largest
        worst = max(worst, np.float64(distance[0]) / np.float64(scale))
    return squared_error, squares, worst
