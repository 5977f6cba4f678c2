"""How many rows fit into memory, from what fewer of them took."""

import math


def largest_micro_batch(
    smaller: tuple[int, int], larger: tuple[int, int], limit_bytes: int, most: int
) -> int:
    """Fit memory = a + b * rows, and give the most rows that stay within a limit.

    Args:
        smaller: Rows that were tried, and their peak in bytes.
        larger: More rows, and theirs.
        limit_bytes: What is not to be passed.
        most: How many rows there are at most.

    Returns:
        From 1 to `most`; 1 also where not even that stays within the limit, which the caller knows
        from what was tried.
    """
    rows, peak = larger
    per_row = (peak - smaller[1]) / (rows - smaller[0])
    if per_row <= 0:
        # What a row adds is lost in what libraries keep for themselves: nothing limits them.
        return most if smaller[1] <= limit_bytes else 1
    return max(1, min(most, rows + math.floor((limit_bytes - peak) / per_row)))


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
