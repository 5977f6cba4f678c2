"""How single values of a report are written in a terminal."""

from modelpress.sizes import format_bytes


def decimal_text(value: float | None) -> str:
    """Write a number; a dash where there is none."""
    return "-" if value is None else f"{value:.5g}"


def percent_text(value: float | None) -> str:
    """Write a share; a dash where there is none."""
    return "-" if value is None else f"{value:.2%}"


def size_text(nbytes: int | None) -> str:
    """Write a number of bytes; a dash where there is none."""
    return "-" if nbytes is None else format_bytes(nbytes)


def count_text(count: int | None) -> str:
    """Write a count; a dash where there is none."""
    return "-" if count is None else f"{count:,}"
