from hypothesis import given
from hypothesis import strategies as st

from training.fitting import even_micro_batch, largest_micro_batch

SIZES = st.integers(1, 4096)


@given(st.integers(0, 10**10), st.integers(1, 10**9), st.integers(0, 2 * 10**10), SIZES, SIZES)
def test_the_largest_micro_batch_fits_and_one_more_would_not(fixed, per_row, limit, most, tried):
    def peak(rows):
        return fixed + per_row * rows

    tries = ((tried, peak(tried)), (2 * tried, peak(2 * tried)))
    found = largest_micro_batch(*tries, limit, most)

    assert 1 <= found <= most
    assert found == 1 or peak(found) <= limit
    assert found == most or peak(found + 1) > limit


def test_rows_that_add_nothing_that_can_be_measured_are_limited_by_nothing():
    assert largest_micro_batch((1, 100), (2, 100), 120, 64) == 64
    assert largest_micro_batch((1, 130), (2, 100), 120, 64) == 1


@given(SIZES, SIZES)
def test_an_even_micro_batch_takes_as_many_passes_as_the_largest_and_is_no_larger(largest, rows):
    found = even_micro_batch(largest, rows)

    assert 1 <= found <= min(largest, rows)
    assert -(-rows // found) == -(-rows // min(largest, rows))


def test_eight_rows_of_which_five_fit_are_two_times_four():
    assert even_micro_batch(5, 8) == 4
