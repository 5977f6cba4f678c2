"""How many rows fit into memory, from what one and two took, and how many are fastest."""

import math
from collections.abc import Callable

#: Fewer rows at a time are worth it where they take less time by this share.
_WORTHWHILE = 0.05


def largest_micro_batch(one_bytes: int, two_bytes: int, limit_bytes: int, most: int) -> int:
    """Fit memory = a + b * rows, and give the most rows that stay within a limit.

    Args:
        one_bytes: The peak with one row.
        two_bytes: The peak with two.
        limit_bytes: What is not to be passed.
        most: How many rows there are at most.

    Returns:
        From 1 to `most`; 1 also where not even that stays within the limit, which the caller knows
        from `one_bytes`.
    """
    per_row = two_bytes - one_bytes
    if per_row <= 0:
        # What a row adds is lost in what libraries keep for themselves: nothing limits them.
        return most if one_bytes <= limit_bytes else 1
    return max(1, min(most, 1 + (limit_bytes - one_bytes) // per_row))


def even_micro_batch(largest: int, rows: int) -> int:
    """Give the smallest micro-batch that needs no more of them than the largest one.

    Args:
        largest: As many rows as fit.
        rows: Of the effective batch.

    Returns:
        At most `largest`: 8 rows of which 5 fit are two times 4, not 5 and 3.
    """
    passes = -(-rows // min(largest, rows))
    return -(-rows // passes)


def fastest_micro_batch(largest: int, rows: int, seconds_of: Callable[[int], float | None]) -> int:
    """Halve a micro-batch for as long as that makes a row faster.

    More rows at a time are not always faster on a processor: their tensors leave its caches, and
    are larger than what the C library keeps.

    Args:
        largest: Rows that should fit.
        rows: Of the effective batch.
        seconds_of: Tries so many rows, and gives the time that they take together; None where they
            do not fit after all.

    Returns:
        The fastest of those that fit; 1 where none of those tried does.
    """
    best, pace = 1, math.inf
    size = largest
    while True:
        seconds = seconds_of(size)
        if seconds is not None and seconds / size < (1 - _WORTHWHILE) * pace:
            best, pace = size, seconds / size
        elif math.isfinite(pace):
            return best
        if size == 1:
            return best
        size = even_micro_batch(-(-size // 2), rows)
