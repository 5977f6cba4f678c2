"""The loops over tensors whose file holds [inputs, channels], compiled: every column is a channel.

Dimension key: R rows of a chunk, W columns of it.
"""

import numpy as np

from engine.compilation import Bits, Bytes, Counts, Integer, Singles, Tallies, kernel
from engine.rounding_kernels import round_run
from engine.scale_kernels import scale_of, value_of
from planning.working_set import RUN


@kernel("void(uint16[:, ::1], uint16, int64[::1])", "void(uint32[:, ::1], uint32, int64[::1])")
def raise_peaks(bits: Bits, mask: Integer, peaks: Counts) -> None:
    """Raise every column's peak to its largest magnitude.

    Args:
        bits: Bit patterns, [R, W].
        mask: What leaves the magnitude of a pattern.
        peaks: The peaks so far, [W].
    """
    for row in range(bits.shape[0]):
        values = bits[row]
        for i in range(values.size):
            peaks[i] = max(peaks[i], np.int64(values[i] & mask))


@kernel(
    "void(int64[::1], int64, uint16[::1], float32[::1])",
    "void(int64[::1], int64, uint32[::1], float32[::1])",
)
def find_scales(peaks: Counts, kind: Integer, stored: Bits, scales: Singles) -> None:
    """Find the scale of every column.

    Args:
        peaks: The largest magnitude of each, [W].
        kind: The dtype of the weights.
        stored: Where the bit patterns of the scales go, [W].
        scales: Where their values go, [W].
    """
    for i in range(peaks.size):
        stored[i] = scale_of(np.uint32(peaks[i]), kind)
        scales[i] = value_of(np.uint32(stored[i]), kind)


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], b1, int64, float32[::1], uint8, uint8[:, ::1],"
    " uint32[:, ::1], float64[::1])",
    "void(uint32[:, ::1], uint32[:, ::1], b1, int64, float32[::1], uint8, uint8[:, ::1],"
    " uint32[:, ::1], float64[::1])",
)
def round_columns(
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
    """Round to int8 with one scale per column.

    Args:
        before: Bit patterns as they came in, [R, W].
        after: Bit patterns after pruning, [R, W].
        is_pruned: Whether the two may differ.
        kind: Their dtype.
        scales: The scales, [W].
        flip: As in `rounding_kernels.round_run`.
        rounded: Where the bytes go, [R, at least W]; what is left of a row becomes 0.
        scratch: As in `rounding_kernels.round_run`.
        tallies: As in `rounding_kernels.round_run`.
    """
    rows, width = after.shape
    for row in range(rows):
        for start in range(0, width, RUN):
            stop = min(start + RUN, width)
            round_run(
                before[row, start:stop],
                after[row, start:stop],
                is_pruned,
                kind,
                scales[start:stop],
                flip,
                rounded[row, start:stop],
                scratch,
                tallies,
            )
        rounded[row, width:] = 0


@kernel(
    "void(uint16[:, ::1], uint16, int64[::1], int64[::1])",
    "void(uint32[:, ::1], uint32, int64[::1], int64[::1])",
)
def count_below(keys: Bits, mask: Integer, limits: Counts, counts: Counts) -> None:
    """Count every column's keys below its limit.

    Args:
        keys: What decides, [R, W].
        mask: Which bits of them.
        limits: One per column, [W].
        counts: The counts so far, [W]; added to.
    """
    for row in range(keys.shape[0]):
        values = keys[row]
        for i in range(values.size):
            counts[i] += np.int64(np.int64(values[i] & mask) < limits[i])


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], uint16, int64[::1], int64[::1], uint16[:, ::1])",
    "void(uint32[:, ::1], uint32[:, ::1], uint32, int64[::1], int64[::1], uint32[:, ::1])",
    "void(uint16[:, ::1], uint32[:, ::1], uint32, int64[::1], int64[::1], uint16[:, ::1])",
)
def erase_smallest(
    before: Bits, keys: Bits, mask: Integer, thresholds: Counts, left: Counts, after: Bits
) -> None:
    """Copy weights, zeroing what lies below a column's threshold and the first that equal it.

    Args:
        before: Bit patterns, [R, W].
        keys: What decides, [R, W].
        mask: Which bits of them.
        thresholds: One key per column, [W].
        left: How many equal keys of each column become 0, [W]; counted down.
        after: Where they go, [R, W].
    """
    for row in range(before.shape[0]):
        values, row_keys, kept = before[row], keys[row], after[row]
        for i in range(values.size):
            key = np.int64(row_keys[i] & mask)
            is_tie = key == thresholds[i] and left[i] > 0
            left[i] -= np.int64(is_tie)
            kept[i] = 0 if is_tie or key < thresholds[i] else values[i]
