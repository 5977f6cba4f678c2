import pytest

from modelpress.sizes import format_bytes, format_seconds, printable


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (3 * 1024**4, "3072.00 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes_are_written_in_the_largest_unit_that_fits(nbytes, text):
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0ms"), (0.04, "40ms"), (0.9996, "1.0s"), (9.94, "9.9s"),
     (12, "12s"), (59.6, "1m 00s"), (130, "2m 10s"),
     (3900, "1h 05m")],
)  # fmt: skip
def test_times_are_written_with_two_units_at_most(seconds, text):
    assert format_seconds(seconds) == text


def test_what_a_terminal_would_obey_is_replaced():
    assert printable("a\x1b[31m\r\nü") == "a\ufffd[31m\ufffd\ufffdü"
