"""The loops of int8 rounding, compiled: one look at every weight while it is in the cache.

Dimension key: R rows of a chunk, W values of each, G groups of inputs with a scale of their own.

Scheme: Jacob et al., 2018, arXiv:1712.05877, section 2.1, with zero point 0 and the range -128 to
127; the scale is amax / 127.5 as in compressed-tensors. It differs in one place: the scale is
rounded up to its stored dtype before it is used, so the stored number is the one that was divided
by, and no weight lies more than half a step from its int8 value.
"""

import numpy as np

from engine.compilation import Bits, Bytes, Integer, Real, Singles, Tallies, kernel
from engine.float_kernels import count_equal, sums_of_squares, widen
from engine.scale_kernels import find_scales, value_of
from planning.working_set import RUN

#: Adding and taking away 1.5 * 2**23 rounds a float32 of this size to the nearest integer, ties to
#: even, in two vector instructions.
_ROUNDER = np.float32(12582912.0)
#: What `tallies` holds, in this order: exact zeros that came in and that went out, the sum of
#: squared differences to what came in, the sum of squares of that, the largest difference to what
#: was rounded, in scales.
TALLIES = 5
#: Rows of `scratch`, each `RUN` long.
SCRATCH_ROWS = 3


@kernel("float32(float32[::1], float32[::1], uint8, uint8[::1])")
def _round(weight: Singles, scale: Singles, flip: Integer, rounded: Bytes) -> Real:
    """Round, and give the largest difference in scales."""
    worst = np.uint32(0)
    for i in range(weight.size):
        ratio = weight[i] / scale[i]
        value = (max(min(ratio, np.float32(127.0)), np.float32(-128.0)) + _ROUNDER) - _ROUNDER
        rounded[i] = np.uint8(np.int8(value)) ^ flip
        # Positive floats have the order of their bit patterns, and integers compare in vectors.
        worst = max(worst, np.float32(abs(ratio - value)).view(np.uint32))
    return np.uint32(worst).view(np.float32)


@kernel("void(float32[::1], float32[::1], uint8, uint8[::1], float32[::1])")
def _compare(
    weight: Singles, scale: Singles, flip: Integer, rounded: Bytes, error: Singles
) -> None:
    for i in range(weight.size):
        error[i] = weight[i] - np.float32(np.int8(rounded[i] ^ flip)) * scale[i]


@kernel(
    "void(uint16[::1], uint16[::1], b1, int64, float32[::1], uint8, uint8[::1], uint32[:, ::1],"
    " float64[::1])",
    "void(uint32[::1], uint32[::1], b1, int64, float32[::1], uint8, uint8[::1], uint32[:, ::1],"
    " float64[::1])",
)
def round_run(
    before: Bits,
    after: Bits,
    is_pruned: bool,
    kind: Integer,
    scales: Singles,
    flip: Integer,
    rounded: Bytes,
    scratch: Bits,
    tallies: Tallies,
) -> None:
    """Write ``clamp(round_half_even(weight / scale), -128, 127)`` of at most `RUN` weights.

    Args:
        before: Bit patterns as they came in.
        after: Bit patterns after pruning, as many.
        is_pruned: Whether the two may differ.
        kind: Their dtype.
        scales: The scale of each.
        flip: Exclusive-ored to every byte: 0x80 turns a value into value + 128.
        rounded: Where the bytes go.
        scratch: Memory for float32 values, [at least 2, RUN].
        tallies: What `TALLIES` says; added to, but for the zeros that came in.
    """
    single = scratch[0, : after.size]
    weight, error = single.view(np.float32), scratch[1, : after.size].view(np.float32)
    widen(after, kind, single)
    worst = _round(weight, scales, flip, rounded)
    if is_pruned:
        widen(before, kind, single)
    _compare(weight, scales, flip, rounded, error)
    squared_error, squares = sums_of_squares(error, weight)
    tallies[1] += count_equal(rounded, np.uint8(0xFF), flip)
    tallies[2] += squared_error
    tallies[3] += squares
    tallies[4] = max(tallies[4], np.float64(worst))


@kernel(
    "void(uint16[::1], uint16[::1], b1, int64, uint16[::1], int64, uint8, uint8[::1],"
    " uint32[:, ::1], float64[::1])",
    "void(uint32[::1], uint32[::1], b1, int64, uint32[::1], int64, uint8, uint8[::1],"
    " uint32[:, ::1], float64[::1])",
)
def round_row(
    before: Bits,
    after: Bits,
    is_pruned: bool,
    kind: Integer,
    stored: Bits,
    group_size: Integer,
    flip: Integer,
    rounded: Bytes,
    scratch: Bits,
    tallies: Tallies,
) -> None:
    """Round consecutive values of a row to int8.

    Args:
        before: Bit patterns as they came in.
        after: Bit patterns after pruning, as many.
        is_pruned: Whether the two may differ.
        kind: Their dtype.
        stored: Bit patterns of the scales, one for every group.
        group_size: How many consecutive values make a group; the first begins one.
        flip: As in `round_run`.
        rounded: Where the bytes go; what is left of it becomes 0.
        scratch: Memory for float32 values, [3, RUN].
        tallies: As in `round_run`.
    """
    scales = scratch[2].view(np.float32)
    is_even = group_size >= after.size
    scales[:] = value_of(stored[0], kind) if after.size else np.float32(1.0)
    for start in range(0, after.size, RUN):
        stop = min(start + RUN, after.size)
        i = 0 if is_even else start
        while not is_even and i < stop:
            group = i // group_size
            end = min(stop, (group + 1) * group_size)
            scales[i - start : end - start] = value_of(stored[group], kind)
            i = end
        round_run(
            before[start:stop],
            after[start:stop],
            is_pruned,
            kind,
            scales[: stop - start],
            flip,
            rounded[start:stop],
            scratch,
            tallies,
        )
    rounded[after.size :] = 0


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], b1, int64, uint16, int64, uint16[::1], uint8,"
    " uint8[:, ::1], uint32[:, ::1], float64[::1])",
    "void(uint32[:, ::1], uint32[:, ::1], b1, int64, uint32, int64, uint32[::1], uint8,"
    " uint8[:, ::1], uint32[:, ::1], float64[::1])",
)
def round_rows(
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
    """Round rows to int8, finding their scales.

    Args:
        before: Bit patterns as they came in, [R, W]; finite.
        after: Bit patterns after pruning, [R, W].
        is_pruned: Whether the two may differ.
        kind: Their dtype.
        mask: What leaves the magnitude of a pattern.
        group_size: How many consecutive values share a scale; it divides W.
        stored: Where the bit patterns of the scales go, [R * G].
        flip: As in `round_run`.
        rounded: Where the bytes go, [R, at least W]; what is left of a row becomes 0.
        scratch: As in `round_row`.
        tallies: As in `round_run`.
    """
    rows, width = after.shape
    groups = width // max(1, group_size)
    for row in range(rows):
        scales = stored[row * groups : (row + 1) * groups]
        find_scales(after[row], kind, mask, group_size, scales)
        round_row(
            before[row],
            after[row],
            is_pruned,
            kind,
            scales,
            group_size,
            flip,
            rounded[row],
            scratch,
            tallies,
        )
