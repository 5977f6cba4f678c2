import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.thresholds import Threshold, find_threshold


def stream_of(keys, parts):
    return lambda: (part.reshape(1, -1) for part in np.array_split(keys, parts))


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 2**15 - 1), (np.uint32, 2**31 - 1)])
@given(data=st.data())
def test_the_threshold_splits_off_exactly_the_smallest(dtype, largest, data):
    values = data.draw(
        st.lists(st.integers(0, largest) | st.sampled_from([7, 32768 % largest]), min_size=1)
    )
    keys = np.array(values, dtype)
    count = data.draw(st.integers(1, keys.size))

    threshold = find_threshold(stream_of(keys, 3), count, is_wide=dtype is np.uint32)

    expected = np.sort(keys)[count - 1]
    assert threshold == Threshold(int(expected), count - int(np.sum(keys < expected)))


def test_a_count_of_zero_reads_nothing_and_splits_off_nothing():
    assert find_threshold(lambda: pytest.fail("read"), 0, is_wide=True) == Threshold(0, 0)
