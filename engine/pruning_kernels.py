"""The loops of pruning, compiled.

Dimension key: C output channels, I inputs of one channel.

Weights come as bit patterns: without the sign bit, the integer order of finite floats is the order
of their magnitudes. `keys` are such magnitudes; `engine.magnitudes` makes them.
"""

import numpy as np
import numpy.typing as npt

from engine.compilation import Bits, Counts, kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel(
    "UniTuple(float64, 2)(uint16[:, ::1], uint16[:, ::1], uint32)",
    "UniTuple(float64, 2)(uint32[:, ::1], uint32[:, ::1], uint32)",
    reorder_sums=True,
)
def pruning_errors(before: Bits, after: Bits, shift: int) -> tuple[float, float]:
    """Measure what pruning took away.

    Args:
        before: Bit patterns as they came in, [C, I].
        after: Bit patterns after pruning, [C, I]: those of `before`, or 0.
        shift: As in `round_channels`.

    Returns:
        The sum of squares of what became 0, and the sum of squares of `before`.
    """
    channels, inputs = before.shape
    pattern = np.empty(inputs, np.uint32)
    weight = pattern.view(np.float32)
    squared_error = 0.0
    squares = 0.0
    for channel in range(channels):
        for i in range(inputs):
            pattern[i] = np.uint32(before[channel, i]) << shift
        for i in range(inputs):
            square = np.float64(weight[i]) * np.float64(weight[i])
            squares += square
            squared_error += square if after[channel, i] == 0 else 0.0
    return squared_error, squares


@kernel(
    "void(uint16[:, ::1], uint32, int64[::1])",
    "void(uint32[:, ::1], uint32, int64[::1])",
)
def count_high(keys: Bits, shift: int, histogram: Counts) -> None:
    """Add every ``key >> shift`` to the histogram.

    Args:
        keys: Magnitudes, [C, I].
        shift: How many low bits to leave out.
        histogram: Counts, long enough for every value.
    """
    for channel in range(keys.shape[0]):
        for i in range(keys.shape[1]):
            histogram[keys[channel, i] >> shift] += 1


@kernel("void(uint32[:, ::1], uint32, uint32, int64[::1])")
def count_low(keys: Bits, shift: int, high: int, histogram: Counts) -> None:
    """Add the low bits of every key whose high bits are `high` to the histogram.

    Args:
        keys: Magnitudes, [C, I].
        shift: How many bits are low.
        high: The ``key >> shift`` to look at.
        histogram: ``2 ** shift`` counts.
    """
    low = (np.uint32(1) << shift) - np.uint32(1)
    for channel in range(keys.shape[0]):
        for i in range(keys.shape[1]):
            key = keys[channel, i]
            if key >> shift == high:
                histogram[key & low] += 1


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], uint16[::1], int64[::1])",
    "void(uint32[:, ::1], uint32[:, ::1], uint32[::1], int64[::1])",
    "void(uint16[:, ::1], uint32[:, ::1], uint32[::1], int64[::1])",
)
def erase_smallest(bits: Bits, keys: Bits, thresholds: Bits, ties: Counts) -> None:
    """Zero what lies below a channel's threshold, and the first `ties` that equal it, in place.

    Args:
        bits: Bit patterns, [C, I].
        keys: Their magnitudes, [C, I].
        thresholds: One key per channel, [C].
        ties: How many equal keys are still to become 0, [C]; counted down.
    """
    for channel in range(bits.shape[0]):
        threshold = thresholds[channel]
        left = ties[channel]
        i = 0
        while i < bits.shape[1] and left > 0:
            key = keys[channel, i]
            left -= np.int64(key == threshold)
            bits[channel, i] = 0 if key <= threshold else bits[channel, i]
            i += 1
        rest, rest_keys = bits[channel, i:], keys[channel, i:]
        for j in range(rest.size):
            rest[j] = 0 if rest_keys[j] < threshold else rest[j]
        ties[channel] = left


@kernel("uint64(uint64, uint64)")
def _draw(seed: np.uint64, position: np.uint64) -> np.uint64:
    # Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators": splitmix64,
    # whose state is a counter, so a draw needs nothing but its place.
    mixed = seed + (position + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@kernel(
    "void(uint16[:, ::1], uint64, int64, int64[::1], int64[::1])",
    "void(uint32[:, ::1], uint64, int64, int64[::1], int64[::1])",
)
def erase_drawn(bits: Bits, seed: np.uint64, position: int, left: Counts, picks: Counts) -> None:
    """Zero exactly `picks` of the `left` weights that a channel still has, in place.

    Knuth, The Art of Computer Programming, volume 2, section 3.4.2, algorithm S: each weight is
    chosen with probability picks / left, so the number is exact and no weight is preferred.

    Args:
        bits: Bit patterns, [C, I].
        seed: Seed of the draws.
        position: How many draws came before these.
        left: Weights not yet looked at per channel, [C]; counted down.
        picks: How many of those become 0, [C]; counted down.
    """
    channels, inputs = bits.shape
    for channel in range(channels):
        remaining = left[channel]
        wanted = picks[channel]
        for i in range(inputs):
            place = np.uint64(position + channel * inputs + i)
            uniform = np.float64(_draw(seed, place) >> np.uint64(11)) * 2.0**-53
            # Near 1 the product may round up to `remaining`, so a draw that must be made is tested.
            if wanted == remaining or uniform * remaining < wanted:
                bits[channel, i] = 0
                wanted -= 1
            remaining -= 1
        left[channel] = remaining
        picks[channel] = wanted


@kernel("void(uint32[:, ::1], uint64, int64)")
def draw_keys(keys: Bits, seed: np.uint64, position: int) -> None:
    """Fill keys with draws.

    Args:
        keys: Where the draws go, [C, I].
        seed: Seed of the draws.
        position: How many draws came before these.
    """
    channels, inputs = keys.shape
    for channel in range(channels):
        for i in range(inputs):
            place = np.uint64(position + channel * inputs + i)
            keys[channel, i] = np.uint32(_draw(seed, place) >> np.uint64(32))


@kernel("void(uint16[:, ::1], uint8[:, ::1])", "void(uint32[:, ::1], uint8[:, ::1])")
def _count_larger(planes: Bits, beaten: npt.NDArray[np.uint8]) -> None:
    beaten[:] = 0
    for i in range(planes.shape[0]):
        for j in range(i + 1, planes.shape[0]):
            earlier, later = planes[i], planes[j]
            earlier_beaten, later_beaten = beaten[i], beaten[j]
            for k in range(earlier.size):
                is_larger = np.uint8(later[k] > earlier[k])
                earlier_beaten[k] += is_larger
                later_beaten[k] += np.uint8(1) - is_larger


@kernel(
    "void(uint16[:, :, :, ::1], uint16[:, :, :, ::1])",
    "void(uint32[:, :, :, ::1], uint32[:, :, :, ::1])",
    "void(uint16[:, :, :, ::1], uint32[:, :, :, ::1])",
)
def erase_in_groups(bits: Bits, keys: Bits) -> None:
    """Keep the larger half of every group of consecutive inputs, in place; ties keep the earliest.

    Args:
        bits: Bit patterns, [C, groups, inputs of a group, positions]; a convolution has as many
            positions as its kernel has places, a Linear has one.
        keys: What decides, of the same shape.
    """
    channels, groups, size, positions = bits.shape
    # Laid out by place in the group, the comparisons run over all groups of a channel at once.
    planes = np.empty((size, groups * positions), keys.dtype)
    beaten = np.empty((size, groups * positions), np.uint8)
    for channel in range(channels):
        for group in range(groups):
            for i in range(size):
                for p in range(positions):
                    planes[i, group * positions + p] = keys[channel, group, i, p]
        _count_larger(planes, beaten)
        for group in range(groups):
            for i in range(size):
                for p in range(positions):
                    is_small = 2 * beaten[i, group * positions + p] >= size
                    # Half of the groups' values go, at places that no branch predictor can learn.
                    bits[channel, group, i, p] = 0 if is_small else bits[channel, group, i, p]
