"""The scales of int8 rounding, compiled.

The scale of a channel or group is its largest magnitude over 127.5, rounded up to the dtype in
which it is stored, so that no weight lies more than half a step from its int8 value.
"""

import numpy as np

from engine.compilation import Bits, Integer, Real, kernel
from engine.float_kernels import BF16, F16, largest

_STEPS = np.float32(127.5)
_SCALE_OF_ZEROS = np.finfo(np.float32).eps
#: The least scale: far below any weight that matters, and no loader flushes it to zero.
_LEAST_SCALE = (np.float32(2.0**-126), np.float32(2.0**-24), np.float32(2.0**-126))
#: From this scale on, -128 steps are an infinity in the weight's dtype; the factor makes it a scale
#: of which every weight is a finite number of steps.
_OVERFLOWING = (np.float32(2.0**121), np.float32(2.0**9), np.float32(2.0**121))
_FACTOR = (np.float32(1.25), np.float32(1 + 2.0**-10), np.float32(1 + 2.0**-22))


@kernel("float32(uint32, int64)")
def value_of(pattern: Integer, kind: Integer) -> Real:
    """Give the float32 that equals a positive bit pattern of a dtype."""
    if kind == BF16:
        return np.uint32(pattern << np.uint32(16)).view(np.float32)
    if kind == F16:
        single = np.uint32(pattern << np.uint32(13)).view(np.float32)
        return single * np.float32(2.0**112)
    return np.uint32(pattern).view(np.float32)


@kernel("uint32(uint32, int64)")
def scale_of(peak: Integer, kind: Integer) -> Integer:
    """Give the scale of a channel.

    Args:
        peak: The channel's largest magnitude.
        kind: The dtype of its weights, and of the scale.

    Returns:
        The bit pattern of the least scale of that dtype that is not below amax / 127.5; 2**-23 for
        a channel of zeros.
    """
    scale = max(value_of(peak, kind) / _STEPS, _LEAST_SCALE[kind])
    if peak == 0:
        scale = _SCALE_OF_ZEROS
    if scale >= _OVERFLOWING[kind]:
        scale = np.float32(scale * _FACTOR[kind])
    pattern = np.float32(scale).view(np.uint32)
    if kind == BF16:
        return (pattern + np.uint32(0xFFFF)) >> np.uint32(16)
    if kind == F16:
        if scale < np.float32(2.0**-14):
            return np.uint32(np.ceil(scale * np.float32(2.0**24)))
        return ((pattern + np.uint32(0x1FFF)) >> np.uint32(13)) - np.uint32(112 << 10)
    return pattern


@kernel(
    "void(uint16[::1], int64, uint16, int64, uint16[::1])",
    "void(uint32[::1], int64, uint32, int64, uint32[::1])",
)
def find_scales(
    bits: Bits, kind: Integer, mask: Integer, group_size: Integer, stored: Bits
) -> None:
    """Find the scale of every group.

    Args:
        bits: Bit patterns, a whole number of groups.
        kind: Their dtype.
        mask: What leaves the magnitude of a pattern.
        group_size: How many consecutive values make a group.
        stored: Where the bit patterns of the scales go.
    """
    for group in range(bits.size // group_size):
        values = bits[group * group_size : (group + 1) * group_size]
        stored[group] = scale_of(largest(values, mask), kind)
