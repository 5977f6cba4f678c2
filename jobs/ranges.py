"""Increasing numbers as a short text, such as ``0-5,7``."""

from collections.abc import Iterable


def ranges_text(numbers: Iterable[int]) -> str:
    """Write numbers down.

    Args:
        numbers: Numbers of 0 or more, each larger than the one before.

    Returns:
        Ranges and single numbers, from which `numbers_of` gives the same.
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def numbers_of(text: str, limit: int) -> list[int]:
    """Read what `ranges_text` wrote.

    Args:
        text: Ranges and single numbers.
        limit: What all numbers must be smaller than.

    Returns:
        The numbers.

    Raises:
        ValueError: It is no such text, a number is too large, or they do not increase.
    """
    numbers: list[int] = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not (numbers[-1] if numbers else -1) < start < stop <= limit:
            raise ValueError(f"{run!r} does not follow below {limit}")
        numbers.extend(range(start, stop))
    return numbers
