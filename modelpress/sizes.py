"""Numbers as people read them; documents and files always hold plain bytes and seconds."""


def format_bytes(nbytes: float) -> str:
    """Write a size in the largest unit that keeps it at 1 or more, such as ``1.50 GiB``."""
    size = abs(nbytes)
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Write a time with two units at most, such as ``1h 05m``, ``2m 10s``, ``3.2s`` or ``40ms``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def printable(text: object) -> str:
    """Make text from elsewhere safe for a terminal: what is no printable character becomes ``�``.

    Tensor names come from uploaded files, and an escape sequence among them must stay text.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
