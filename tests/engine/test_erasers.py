import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.erasers import (
    ChannelDrawEraser,
    ChannelEraser,
    DrawEraser,
    GroupEraser,
)
from engine.workbench import Workbench


@given(
    elements=st.integers(1, 400),
    fraction=st.floats(0, 1),
    cut=st.integers(0, 400),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_draw_takes_the_exact_number_and_does_not_depend_on_blocks(elements, fraction, cut, seed):
    picks = int(fraction * elements)
    cut = min(cut, elements)
    whole, head, tail = (np.ones((1, n), np.uint16) for n in (elements, cut, elements - cut))
    one, many = DrawEraser(seed, elements, picks), DrawEraser(seed, elements, picks)

    chosen = one.erase(whole, "BF16", Workbench())
    many.erase(head, "BF16", Workbench())
    many.erase(tail, "BF16", Workbench())

    assert chosen == picks == np.sum(whole == 0)
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)


def test_every_weight_is_drawn_equally_often():
    hits = np.zeros(20)
    for seed in range(4000):
        bits = np.ones((1, 20), np.uint32)
        DrawEraser(seed * 7919, 20, 5).erase(bits, "F32", Workbench())
        hits += bits[0] == 0

    # Binomial(4000, 1/4): standard deviation 27, so five of them.
    np.testing.assert_allclose(hits, np.full(20, 1000), atol=137)


@pytest.mark.parametrize("count", [0, 1, 6, 12])
def test_every_channel_loses_the_same_number_drawn_or_smallest(count):
    rng = np.random.default_rng(0)
    for eraser in (ChannelDrawEraser(3, count), ChannelEraser(count)):
        bits = rng.integers(1, 5, (7, 12)).astype(np.uint16)
        eraser.erase(bits, "BF16", Workbench())
        np.testing.assert_array_equal(np.sum(bits == 0, axis=1), np.full(7, count))


def test_equal_weights_of_a_channel_are_pruned_from_the_first():
    bits = np.full((2, 6), 0x3F80, np.uint16)

    ChannelEraser(4).erase(bits, "BF16", Workbench())

    np.testing.assert_array_equal(bits == 0, [[True] * 4 + [False] * 2] * 2)


@pytest.mark.parametrize("group", [4, 8])
@pytest.mark.parametrize("positions", [1, 9])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_every_group_keeps_its_larger_half_and_the_earliest_of_equals(group, positions, dtype):
    rng = np.random.default_rng(1)
    bits = rng.integers(1, 6, (5, 4 * group * positions)).astype(dtype)
    expected = bits.copy().reshape(5, 4, group, positions)
    for channel, block, place in np.ndindex(5, 4, positions):
        values = expected[channel, block, :, place]
        values[np.argsort(-values.astype(int), kind="stable")[group // 2 :]] = 0

    GroupEraser(group, positions, None).erase(
        bits, "BF16" if dtype == np.uint16 else "F32", Workbench()
    )

    np.testing.assert_array_equal(bits.reshape(expected.shape), expected)


@pytest.mark.parametrize("group", [4, 8])
def test_a_drawn_pattern_keeps_half_of_every_group_whatever_the_blocks(group):
    whole = np.ones((6, 3 * group), np.uint16)
    top, bottom = whole[:2].copy(), whole[2:].copy()
    GroupEraser(group, 1, 11).erase(whole, "BF16", Workbench())
    eraser = GroupEraser(group, 1, 11)
    eraser.erase(top, "BF16", Workbench())
    eraser.erase(bottom, "BF16", Workbench())

    np.testing.assert_array_equal(np.concatenate([top, bottom]), whole)
    kept = whole.reshape(6, 3, group).sum(axis=2)
    np.testing.assert_array_equal(kept, np.full((6, 3), group // 2))
