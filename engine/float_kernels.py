"""The loops over bit patterns of floats, compiled.

IEEE 754 floats without their sign bit, read as integers, have the order of their absolute values:
they are called magnitudes here, and comparing and counting them is exact.
"""

import numpy as np

from engine.compilation import Bits, Integer, Singles, kernel

#: How loops tell the dtypes of weights apart.
BF16, F16, F32 = 0, 1, 2
KINDS = {"BF16": BF16, "F16": F16, "F32": F32}


@kernel("void(uint16[::1], int64, uint32[::1])", "void(uint32[::1], int64, uint32[::1])")
def widen(bits: Bits, kind: Integer, single: Bits) -> None:
    """Give the patterns of the float32 values that equal the weights.

    Args:
        bits: Bit patterns, any number.
        kind: Their dtype.
        single: Where the result goes; at least as long.
    """
    if kind == BF16:
        for i in range(bits.size):
            single[i] = np.uint32(bits[i]) << np.uint32(16)
        return
    if kind == F32:
        for i in range(bits.size):
            single[i] = np.uint32(bits[i])
        return
    value = single.view(np.float32)
    # The exponent is off by 112 after the shift. Subnormals of F16 are ones of float32 until then.
    for i in range(bits.size):
        single[i] = (np.uint32(bits[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(bits.size):
        value[i] = value[i] * np.float32(2.0**112)
    for i in range(bits.size):
        single[i] |= (np.uint32(bits[i]) & np.uint32(0x8000)) << np.uint32(16)


@kernel("void(uint16[::1], int64, uint32[::1])", "void(uint32[::1], int64, uint32[::1])")
def wide_keys(bits: Bits, kind: Integer, keys: Bits) -> None:
    """Give magnitudes in the order of float32, which all dtypes share.

    Args:
        bits: Bit patterns, any number.
        kind: Their dtype.
        keys: Where the result goes; as long.
    """
    widen(bits, kind, keys)
    for i in range(keys.size):
        keys[i] &= np.uint32(0x7FFFFFFF)


@kernel("uint16(uint16[::1], uint16)", "uint32(uint32[::1], uint32)")
def largest(bits: Bits, mask: Integer) -> Integer:
    """Give the largest of some integers after masking them; 0 for none."""
    found = mask & ~mask
    for i in range(bits.size):
        found = max(found, bits[i] & mask)
    return found


@kernel(
    "int64(uint8[::1], uint8, uint8)",
    "int64(uint16[::1], uint16, uint16)",
    "int64(uint32[::1], uint32, uint32)",
)
def count_equal(bits: Bits, mask: Integer, wanted: Integer) -> Integer:
    """Count the integers that equal a number after masking them."""
    total = 0
    # A counter of 16 bits lets 32 of them fit a vector, and cannot overflow in so few rounds.
    for start in range(0, bits.size, 32768):
        part = bits[start : start + 32768]
        count = np.uint16(0)
        for i in range(part.size):
            count = np.uint16(count + np.uint16((part[i] & mask) == wanted))
        total += int(count)
    return total


@kernel(
    "UniTuple(float64, 2)(float32[::1], float32[::1])",
    reorder_sums=True,
)
def sums_of_squares(first: Singles, second: Singles) -> tuple[float, float]:
    """Give the sums of the squares of two arrays of one length."""
    of_first = 0.0
    of_second = 0.0
    for i in range(first.size):
        one, other = np.float64(first[i]), np.float64(second[i])
        of_first += one * one
        of_second += other * other
    return of_first, of_second
