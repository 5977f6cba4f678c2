"""The loops of pruning, compiled.

Dimension key: R rows of a chunk, W values of each.

Weights come as bit patterns, and `keys` decide which of them become 0: the smallest. Keys are the
patterns themselves, whose `mask` leaves their magnitude, or integers that were made of them.
"""

import numpy as np

from engine.compilation import Bits, Counts, Integer, Tallies, kernel
from engine.float_kernels import count_equal, sums_of_squares, widen
from planning.working_set import RUN

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel(
    "void(uint16[::1], uint16[::1], int64, uint16, uint32[:, ::1], float64[::1])",
    "void(uint32[::1], uint32[::1], int64, uint32, uint32[:, ::1], float64[::1])",
)
def tally(
    before: Bits, after: Bits, kind: Integer, mask: Integer, scratch: Bits, tallies: Tallies
) -> None:
    """Measure what pruning took away.

    Args:
        before: Bit patterns as they came in.
        after: Bit patterns after pruning: those of `before`, or 0.
        kind: Their dtype.
        mask: What leaves the magnitude of a pattern.
        scratch: Memory for float32 values, [at least 2, RUN].
        tallies: As in `rounding_kernels.TALLIES`; added to, but for the zeros that came in.
    """
    for start in range(0, after.size, RUN):
        stop = min(start + RUN, after.size)
        original, erased = scratch[0, : stop - start], scratch[1, : stop - start]
        widen(before[start:stop], kind, original)
        for i in range(stop - start):
            erased[i] = original[i] if after[start + i] == 0 else 0
        squared_error, squares = sums_of_squares(erased.view(np.float32), original.view(np.float32))
        tallies[1] += count_equal(after[start:stop], mask, mask & ~mask)
        tallies[2] += squared_error
        tallies[3] += squares


@kernel(
    "void(uint16[::1], uint16, int64, int64, int64, uint32[::1])",
    "void(uint32[::1], uint32, int64, int64, int64, uint32[::1])",
)
def count_digits(
    keys: Bits, mask: Integer, shift: Integer, digit: Integer, prefix: Integer, histogram: Counts
) -> None:
    """Add a digit of every key to a histogram.

    Args:
        keys: Integers.
        mask: Which of their bits are the key.
        shift: How many bits are below the digit.
        digit: How many bits the digit has.
        prefix: What is above the digit in the keys that count; -1 counts every key.
        histogram: ``2 ** digit`` counts.
    """
    low = (np.int64(1) << digit) - 1
    if prefix < 0:
        for i in range(keys.size):
            histogram[np.int64(keys[i] & mask) >> shift] += np.uint32(1)
        return
    for i in range(keys.size):
        key = np.int64(keys[i] & mask)
        if key >> (shift + digit) == prefix:
            histogram[(key >> shift) & low] += np.uint32(1)


@kernel("void(uint32[::1], int64[::1])")
def move_counts(mine: Counts, total: Counts) -> None:
    """Add one histogram to another and empty the first."""
    for i in range(mine.size):
        total[i] += mine[i]
    mine[:] = 0


@kernel("UniTuple(int64, 2)(int64[::1], int64)", "UniTuple(int64, 2)(uint32[::1], int64)")
def locate(histogram: Counts, count: Integer) -> tuple[Integer, Integer]:
    """Find the bin of the count-th smallest, and how many of that bin are among the smallest."""
    left = count
    for place in range(histogram.size):
        inside = np.int64(histogram[place])
        if left <= inside:
            return place, left
        left -= inside
    return histogram.size - 1, np.int64(0)


@kernel("int64(uint16[::1], uint16, uint16)", "int64(uint32[::1], uint32, uint32)")
def count_below(keys: Bits, mask: Integer, limit: Integer) -> Integer:
    """Count the keys below a limit."""
    total = 0
    # As in `count_equal`.
    for start in range(0, keys.size, 32768):
        part = keys[start : start + 32768]
        count = np.uint16(0)
        for i in range(part.size):
            count = np.uint16(count + np.uint16((part[i] & mask) < limit))
        total += int(count)
    return total


@kernel(
    "void(uint16[::1], uint16[::1], uint16, uint16, b1, uint16[::1])",
    "void(uint32[::1], uint32[::1], uint32, uint32, b1, uint32[::1])",
    "void(uint16[::1], uint32[::1], uint32, uint32, b1, uint16[::1])",
)
def _erase_run(
    before: Bits, keys: Bits, mask: Integer, threshold: Integer, ties_too: bool, after: Bits
) -> None:
    # Two loops, because a limit of the keys' own type is compared in vectors, and one more than the
    # largest key would not be of that type.
    if ties_too:
        for i in range(before.size):
            after[i] = 0 if (keys[i] & mask) <= threshold else before[i]
    else:
        for i in range(before.size):
            after[i] = 0 if (keys[i] & mask) < threshold else before[i]


@kernel(
    "void(uint16[::1], uint16[::1], uint16, uint16, int64, uint16[::1])",
    "void(uint32[::1], uint32[::1], uint32, uint32, int64, uint32[::1])",
    "void(uint16[::1], uint32[::1], uint32, uint32, int64, uint16[::1])",
)
def erase_smallest(
    before: Bits, keys: Bits, mask: Integer, threshold: Integer, ties: Integer, after: Bits
) -> None:
    """Copy weights, zeroing what lies below a threshold and the first `ties` that equal it.

    Args:
        before: Bit patterns.
        keys: What decides, as many.
        mask: Which bits of them.
        threshold: A key.
        ties: How many equal keys become 0; more than there are means all.
        after: Where they go, as many.
    """
    left = ties
    i = 0
    while i < before.size and left > 0:
        stop = min(i + RUN, before.size)
        equal = count_equal(keys[i:stop], mask, threshold)
        if equal > left:
            break
        left -= equal
        _erase_run(before[i:stop], keys[i:stop], mask, threshold, True, after[i:stop])
        i = stop
    while i < before.size and left > 0:
        key = keys[i] & mask
        left -= np.int64(key == threshold)
        after[i] = 0 if key <= threshold else before[i]
        i += 1
    _erase_run(before[i:], keys[i:], mask, threshold, False, after[i:])


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], uint16, int64, int64, uint16[:, ::1])",
    "void(uint32[:, ::1], uint32[:, ::1], uint32, int64, int64, uint32[:, ::1])",
    "void(uint16[:, ::1], uint32[:, ::1], uint32, int64, int64, uint16[:, ::1])",
)
def erase_in_rows(
    before: Bits, keys: Bits, mask: Integer, key_bits: Integer, count: Integer, after: Bits
) -> None:
    """Copy weights, zeroing the `count` smallest of every row, the first among equals.

    Args:
        before: Bit patterns, [R, W].
        keys: What decides, [R, W].
        mask: Which bits of them.
        key_bits: How many bits those are.
        count: How many of each row; at least 1.
        after: Where they go, [R, W].
    """
    for row in range(before.shape[0]):
        # Halving the range of keys takes a look at the row for every bit, each so fast in vectors
        # that sorting or a histogram would take longer.
        threshold = np.int64(0)
        for bit in range(key_bits - 1, -1, -1):
            candidate = threshold | (np.int64(1) << bit)
            if count_below(keys[row], mask, candidate) < count:
                threshold = candidate
        ties = count - count_below(keys[row], mask, threshold)
        erase_smallest(before[row], keys[row], mask, threshold, ties, after[row])


@kernel("uint64(uint64, uint64)")
def _draw(seed: Integer, position: Integer) -> Integer:
    # Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators": splitmix64,
    # whose state is a counter, so a draw needs nothing but its place.
    mixed = seed + (position + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@kernel("void(uint32[:, ::1], uint64, int64, int64, int64)")
def draw_keys(
    keys: Bits, seed: Integer, position: Integer, row_step: Integer, column_step: Integer
) -> None:
    """Fill keys with draws: the same for the same seed and position, whatever the chunk.

    Args:
        keys: Where the draws go, [R, W].
        seed: Seed of the draws.
        position: Position of the first.
        row_step: How far the positions of neighbours in a column lie apart.
        column_step: How far those of neighbours in a row do.
    """
    for row in range(keys.shape[0]):
        start = position + row * row_step
        for i in range(keys.shape[1]):
            place = np.uint64(start + i * column_step)
            keys[row, i] = np.uint32(_draw(seed, place) >> np.uint64(32))
