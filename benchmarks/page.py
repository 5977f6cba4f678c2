"""Where a benchmark's table goes: between two markers of the page, and onto the screen."""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ByteSize, TypeAdapter

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def read_arguments(description: str, *, size: str, rounds: int) -> argparse.Namespace:
    """Read the options that every benchmark has.

    Args:
        description: What the benchmark claims.
        size: Default of --size, such as `2GB`; empty where the benchmark has no size.
        rounds: Default of --rounds.

    Returns:
        `size` in bytes where there is one, `rounds`, and the `page` to write into.
    """
    parser = argparse.ArgumentParser(description=description)
    if size:
        parser.add_argument("--size", type=_parse_size, default=size, help=f"default {size}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    return parser.parse_args()


def _parse_size(text: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(text))


def spread(values: Iterable[float], digits: int = 0) -> str:
    """Write measurements as `median (min..max)`, and a single one as itself."""
    ordered = sorted(values)
    median = f"{statistics.median(ordered):,.{digits}f}"
    if len(ordered) == 1:
        return median
    return f"{median} ({ordered[0]:,.{digits}f}..{ordered[-1]:,.{digits}f})"


def p99(values: Iterable[float]) -> float:
    """Give what 99 of 100 values are not above; of few values the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table: text in the first column, numbers in the others.

    Args:
        head: The columns' names.
        rows: The cells; a row that is too short is filled up.

    Returns:
        The table.
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(page: Path, name: str, text: str) -> None:
    """Print a text and put it between the page's markers of that name.

    Args:
        page: The page, which has `<!-- NAME -->` and `<!-- /NAME -->`.
        name: Which markers.
        text: What to put there instead of what there is.

    Raises:
        ValueError: The page has no such markers.
    """
    print(f"\n{text}\n", flush=True)
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(opening)
    _, ended, after = rest.partition(closing)
    if not (found and ended):
        raise ValueError(f"{page.name} has no {opening} … {closing}")
    page.write_text(f"{before}{opening}\n{text}\n{closing}{after}")
