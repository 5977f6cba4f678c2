"""What a data set may take of memory, and how it is said that one cannot be read."""

from jobs.problems import Problem

#: Of the rows that are read at a time, as int64 or float32 and as the characters of text.
_MOST_BATCH_BYTES = 256 * 1024**2


def refuse_large(nbytes: int, batch: int) -> None:
    """Refuse rows that take too much memory together.

    Args:
        nbytes: What they take.
        batch: How many they are.

    Raises:
        Problem: `invalid_dataset`.
    """
    if nbytes > _MOST_BATCH_BYTES:
        raise unreadable(
            f"{batch} rows of it take {nbytes} bytes in memory, and {_MOST_BATCH_BYTES} are "
            "allowed. Lower batch_size, or make the rows smaller."
        )


def unreadable(detail: str) -> Problem:
    """Give the problem of a data set, `invalid_dataset`."""
    return Problem("invalid_dataset", f"The data set cannot be read. {detail}")
