"""How many rows fit into memory, from what one and two of them took."""


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
