"""Weights as bit patterns, and their magnitudes as integers of the same order.

IEEE 754 floats without their sign bit, read as integers, have the order of their absolute values,
so comparing, counting and selecting are exact and need no arithmetic.
"""

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits
from engine.workbench import Workbench

#: The dtypes that are pruned and quantized, and the integers that hold their patterns.
PATTERN_DTYPES: dict[str, npt.DTypeLike] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
#: The pattern of infinity: it and everything above is not finite.
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


def keys_of(bits: Bits, bench: Workbench) -> Bits:
    """Give the magnitudes of weights in the order of their own dtype.

    Args:
        bits: Bit patterns, any shape.
        bench: Where the result lies, as ``"keys"``.

    Returns:
        Integers of the same width whose order is that of the absolute values.
    """
    keys: Bits = bench.take("keys", bits.shape, bits.dtype)
    np.bitwise_and(bits, bits.dtype.type(np.iinfo(bits.dtype).max >> 1), out=keys)
    return keys


def wide_keys_of(bits: Bits, dtype: str, bench: Workbench) -> Bits:
    """Give the magnitudes of weights in an order that all dtypes share: that of float32.

    Args:
        bits: Bit patterns, any shape.
        dtype: Their safetensors dtype.
        bench: Where the result lies, as ``"wide"``.

    Returns:
        uint32 integers whose order is that of the absolute values.
    """
    pattern, shift = single_precision(bits, dtype, bench, "wide")
    keys: npt.NDArray[np.uint32] = bench.take("wide", bits.shape, np.uint32)
    np.left_shift(pattern, np.uint32(shift), out=keys, dtype=np.uint32)
    np.bitwise_and(keys, np.uint32(0x7FFFFFFF), out=keys)
    return keys


def single_precision(bits: Bits, dtype: str, bench: Workbench, use: str) -> tuple[Bits, int]:
    """Give patterns that a shift to the left turns into those of float32 values.

    Args:
        bits: Bit patterns, any shape.
        dtype: Their safetensors dtype.
        bench: Where the result lies if it is not `bits`.
        use: The name of the result there.

    Returns:
        Patterns of the same shape, and the shift. The values are exactly the weights.
    """
    if dtype == "F32":
        return bits, 0
    if dtype == "BF16":
        return bits, 16
    values: npt.NDArray[np.float32] = bench.take(use, bits.shape, np.float32)
    np.copyto(values, bits.view(np.float16))
    return values.view(np.uint32), 0


def first_non_finite(keys: Bits, dtype: str) -> int | None:
    """Find a NaN or an infinity.

    Args:
        keys: Magnitudes from `keys_of`, any shape.
        dtype: The safetensors dtype of the weights.

    Returns:
        The position of the first one in the flattened array, or None.
    """
    if int(keys.max(initial=0)) < _INFINITY[dtype]:
        return None
    return int(np.argmax(keys.ravel() >= _INFINITY[dtype]))


def sparsity_count(keys: Bits) -> int:
    """Count exact zeros, of either sign."""
    return keys.size - int(np.count_nonzero(keys))
