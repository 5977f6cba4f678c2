import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ranges import numbers_of, ranges_text


@pytest.mark.parametrize(
    ("numbers", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([3, 5, 6], "3,5-6")]
)
def test_neighbours_become_a_range(numbers, text):
    assert ranges_text(numbers) == text


@given(st.sets(st.integers(0, 300), min_size=1))
def test_what_was_written_is_read_again(numbers):
    assert numbers_of(ranges_text(sorted(numbers)), 301) == sorted(numbers)


@pytest.mark.parametrize("text", ["", "-1", "a", "1-2-3"])
def test_what_is_no_such_text_is_refused(text):
    with pytest.raises(ValueError, match="invalid literal"):
        numbers_of(text, 10)


@pytest.mark.parametrize("text", ["3-2", "1,1", "5,4", "0-10", "0-99999999999"])
def test_numbers_that_do_not_increase_or_are_too_large_are_refused(text):
    with pytest.raises(ValueError, match="does not follow below 10"):
        numbers_of(text, 10)
