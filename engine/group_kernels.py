"""The loops of N:M pruning, compiled.

Dimension key: G groups, M inputs of a group, P positions of an input.
"""

import numpy as np

from engine.compilation import Bits, Integer, kernel

#: How many magnitudes of one place in their groups are compared at one time.
PLANE = 512


@kernel("void(uint32[:, ::1], uint32[:, ::1], int64, int64)")
def _count_larger(planes: Bits, beaten: Bits, size: Integer, count: Integer) -> None:
    for i in range(size):
        beaten[i] = 0
    for i in range(size):
        for j in range(i + 1, size):
            earlier, later = planes[i, :count], planes[j, :count]
            earlier_beaten, later_beaten = beaten[i, :count], beaten[j, :count]
            for k in range(count):
                is_larger = np.uint32(later[k] > earlier[k])
                earlier_beaten[k] += is_larger
                later_beaten[k] += np.uint32(1) - is_larger


@kernel(
    "void(uint16[:, ::1], uint16[:, ::1], uint16, uint32[:, ::1], uint32[:, ::1], uint16[:, ::1])",
    "void(uint32[:, ::1], uint32[:, ::1], uint32, uint32[:, ::1], uint32[:, ::1], uint32[:, ::1])",
    "void(uint16[:, ::1], uint32[:, ::1], uint32, uint32[:, ::1], uint32[:, ::1], uint16[:, ::1])",
)
def _erase_neighbours(
    before: Bits, keys: Bits, mask: Integer, planes: Bits, beaten: Bits, after: Bits
) -> None:
    groups, size = before.shape
    for first in range(0, groups, PLANE):
        count = min(PLANE, groups - first)
        for i in range(size):
            plane = planes[i]
            column = keys[first : first + count, i]
            for k in range(count):
                plane[k] = column[k] & mask
        _count_larger(planes, beaten, size, count)
        for i in range(size):
            rank = beaten[i]
            values, kept = before[first : first + count, i], after[first : first + count, i]
            for k in range(count):
                # Half of the values go, at places that no branch predictor can learn.
                kept[k] = 0 if 2 * rank[k] >= size else values[k]


@kernel("void(uint64[::1], uint64[::1], uint64, uint64[::1])")
def erase_two_of_four(before: Bits, keys: Bits, mask: Integer, after: Bits) -> None:
    """Copy 16-bit weights, zeroing the smaller two of every four consecutive ones.

    A group fills one 64-bit word, so no weight has to move to meet the others of its group.

    Args:
        before: Bit patterns, a group in each word.
        keys: What decides, likewise.
        mask: Which bits of a 16-bit key.
        after: Where they go.
    """
    one, two, lane = np.uint64(1), np.uint64(2), np.uint64(0xFFFF)
    for group in range(before.size):
        word = keys[group]
        a = word & mask
        b = (word >> np.uint64(16)) & mask
        c = (word >> np.uint64(32)) & mask
        d = (word >> np.uint64(48)) & mask
        ab, ac, ad = np.uint64(b > a), np.uint64(c > a), np.uint64(d > a)
        bc, bd, cd = np.uint64(c > b), np.uint64(d > b), np.uint64(d > c)
        kept = lane * np.uint64(ab + ac + ad < two)
        kept |= (lane * np.uint64(one - ab + bc + bd < two)) << np.uint64(16)
        kept |= (lane * np.uint64(two - ac - bc + cd < two)) << np.uint64(32)
        kept |= (lane * np.uint64(np.uint64(3) - ad - bd - cd < two)) << np.uint64(48)
        after[group] = before[group] & kept


@kernel(
    "void(uint16[:, :, ::1], uint16[:, :, ::1], uint16, uint32[:, ::1], uint32[:, ::1],"
    " uint16[:, :, ::1])",
    "void(uint32[:, :, ::1], uint32[:, :, ::1], uint32, uint32[:, ::1], uint32[:, ::1],"
    " uint32[:, :, ::1])",
    "void(uint16[:, :, ::1], uint32[:, :, ::1], uint32, uint32[:, ::1], uint32[:, ::1],"
    " uint16[:, :, ::1])",
)
def erase_in_groups(
    before: Bits, keys: Bits, mask: Integer, planes: Bits, beaten: Bits, after: Bits
) -> None:
    """Copy weights, zeroing the smaller half of every group of inputs; ties keep the earliest.

    Args:
        before: Bit patterns, [G, M, P].
        keys: What decides, [G, M, P].
        mask: Which bits of them.
        planes: Memory for keys by their place in the group, [at least M, PLANE].
        beaten: Memory for how many beat each, as large.
        after: Where they go, [G, M, P].
    """
    groups, size, positions = before.shape
    if positions == 1:
        shape = (groups, size)
        kept = after.reshape(shape)
        _erase_neighbours(before.reshape(shape), keys.reshape(shape), mask, planes, beaten, kept)
        return
    for group in range(groups):
        for start in range(0, positions, PLANE):
            stop = min(start + PLANE, positions)
            for i in range(size):
                plane, row = planes[i], keys[group, i, start:stop]
                for p in range(stop - start):
                    plane[p] = row[p] & mask
            _count_larger(planes, beaten, size, stop - start)
            for i in range(size):
                rank, values = beaten[i], before[group, i, start:stop]
                kept = after[group, i, start:stop]
                for p in range(stop - start):
                    kept[p] = 0 if 2 * rank[p] >= size else values[p]
