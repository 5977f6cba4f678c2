"""What a model was run over, as a line for a terminal."""

from collections.abc import Callable
from typing import Any

from rich.text import Text

from modelpress.sizes import format_bytes, printable


def describe_inference(found: dict[str, Any]) -> Text:
    """Write a report's inference down.

    Args:
        found: Its members; what is missing is left out.

    Returns:
        Rows, pace, the batch, its memory and budget, the file, and what was run again.
    """
    again = found.get("recheck") or {}
    facts = [
        (found.get("rows"), "{:,} rows".format),
        (found.get("resumed_at"), "{:,} of them before a kill".format),
        (found.get("rows_per_second"), "{:.4g} rows/s".format),
        (found.get("batch_size"), "batches of at most {:,}".format),
        (found.get("resident_peak_bytes"), _sized("peak")),
        (found.get("budget_bytes"), _sized("budget")),
        (found.get("headroom_bytes"), _sized("headroom")),
        (found.get("file"), "in {}".format),
        (again.get("rerun"), "{:,} of them run again".format),
    ]
    known = [write(value) for value, write in facts if value is not None]
    return Text(printable(f"{found.get('output', 'answers')}: " + ", ".join(known)))


def _sized(name: str) -> Callable[[int], str]:
    return lambda nbytes: f"{name} {format_bytes(nbytes)}"
