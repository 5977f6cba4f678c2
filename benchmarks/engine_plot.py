"""The picture of `benchmarks.engine`: time against memory, one panel for each checkpoint."""

from collections.abc import Callable
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

from benchmarks.comparison import Comparison, Row
from benchmarks.ways import COPY

_PANEL, _GAP, _LEFT, _TOP = 250, 44, 60, 40
_LEGEND_LINE = 18
_COLOURS = (
    "#0b6e4f", "#21a179", "#7bc950", "#00a6a6", "#084c61", "#8d99ae",
    "#d1495b", "#edae49", "#8f2d56", "#f26419", "#6f4e7c",
)  # fmt: skip


def draw_comparisons(comparisons: list[Comparison], path: Path) -> None:
    """Draw all checkpoints beside each other, on the same logarithmic axes.

    Args:
        comparisons: One for each checkpoint.
        path: Where the SVG goes.
    """
    rows = [row for comparison in comparisons for row in _points(comparison)]
    along = _axis([_megabytes(row) for row in rows])
    times = [_seconds(row) for comparison in comparisons for row in comparison.rows if row.taken]
    up = _axis(times)
    ways = list(dict.fromkeys(row.way for row in rows))
    colours = dict(zip(ways, _COLOURS, strict=False))
    width = _LEFT + len(comparisons) * (_PANEL + _GAP)
    legend_top = _TOP + _PANEL + 60
    height = legend_top + _LEGEND_LINE * ((len(ways) + 2) // 2)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">'
    )
    parts = [opening, f'<rect width="{width}" height="{height}" fill="white"/>']
    for number, comparison in enumerate(comparisons):
        left = _LEFT + number * (_PANEL + _GAP)
        parts.append(f'<g transform="translate({left} {_TOP})">')
        parts += _panel(comparison, along, up, colours, with_labels=number == 0)
        parts.append("</g>")
    for number, way in enumerate(ways):
        x = _LEFT + (number % 2) * width // 2
        y = legend_top + number // 2 * _LEGEND_LINE
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colours[way]}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}">{escape(way)}</text>')
    parts.append("</svg>\n")
    path.write_text("\n".join(parts))


def _panel(
    comparison: Comparison,
    along: tuple[int, int],
    up: tuple[int, int],
    colours: dict[str, str],
    *,
    with_labels: bool,
) -> list[str]:
    def across(megabytes: float) -> float:
        return _place(megabytes, along)

    def down(seconds: float) -> float:
        return _PANEL - _place(seconds, up)

    middle = _PANEL / 2
    parts = [
        f'<text x="{middle}" y="-12" text-anchor="middle" font-size="13">{comparison.size}</text>',
        *_grid(across, down, along, up, with_labels=with_labels),
        f'<text x="{middle}" y="{_PANEL + 32}" text-anchor="middle">added memory, MB</text>',
    ]
    if with_labels:
        parts.append(
            f'<text transform="translate(-44 {middle}) rotate(-90)" text-anchor="middle">'
            "seconds</text>"
        )
    [copy] = [row for row in comparison.rows if row.way == COPY]
    y = down(_seconds(copy))
    parts.append(
        f'<line x1="0" x2="{_PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" '
        f'stroke-dasharray="5 4"/><text x="{_PANEL - 4}" y="{y - 4:.1f}" text-anchor="end" '
        'fill="#555">cp -r</text>'
    )
    for row in _points(comparison):
        x, y = across(_megabytes(row)), down(_seconds(row))
        said = f"{row.way}: {_seconds(row):.2f} s, {_megabytes(row):,.1f} MB"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colours[row.way]}" '
            f'stroke="white"><title>{escape(said)}</title></circle>'
        )
    return parts


def _grid(
    across: Callable[[float], float],
    down: Callable[[float], float],
    along: tuple[int, int],
    up: tuple[int, int],
    *,
    with_labels: bool,
) -> list[str]:
    parts = [f'<rect width="{_PANEL}" height="{_PANEL}" fill="none" stroke="#999"/>']
    for power in range(along[0], along[1] + 1):
        x = across(10.0**power)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y2="{_PANEL}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_PANEL + 15}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for power in range(up[0], up[1] + 1):
        y = down(10.0**power)
        parts.append(f'<line y1="{y:.1f}" y2="{y:.1f}" x2="{_PANEL}" stroke="#ddd"/>')
        if with_labels:
            parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    return parts


def _points(comparison: Comparison) -> list[Row]:
    """Give what uses memory: all but the copies."""
    return [row for row in comparison.rows if row.taken and "`cp" not in row.way]


def _megabytes(row: Row) -> float:
    # Nothing is shown as less than a tenth, which has a place on a logarithmic axis.
    return max(0.1, median(one.added_anonymous_bytes for one in row.taken) / 1e6)


def _seconds(row: Row) -> float:
    return median(one.seconds for one in row.taken)


def _axis(values: list[float]) -> tuple[int, int]:
    """Give the powers of ten that enclose the values."""
    low = floor(log10(min(values)))
    return low, max(low + 1, ceil(log10(max(values))))


def _place(value: float, axis: tuple[int, int]) -> float:
    low, high = axis
    return (log10(value) - low) / (high - low) * _PANEL
