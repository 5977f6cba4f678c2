"""The section of the page that `benchmarks.engine` writes: a table for each checkpoint."""

from collections.abc import Iterator
from statistics import median

from benchmarks.comparison import Comparison, Row
from benchmarks.page import spread, table
from benchmarks.ways import COPY, FLUSHED_COPY, JOB, OURS

_HEAD = (
    "way", "seconds", "of `cp -r`", "process s", "CPU s", "added MB", "anonymous MB",
    "resident MB", "output MB", "rel. RMSE %", "max error, steps", "zeros %",
)  # fmt: skip


def comparison_text(machine: str, comparisons: list[Comparison]) -> str:
    """Write the whole section.

    Args:
        machine: What it was measured on.
        comparisons: One for each checkpoint.

    Returns:
        Markdown: what was done, then a heading, a table and its gist for each checkpoint.
    """
    rows = comparisons[0].rows
    ours, peers = (
        max((len(row.taken) for row in rows if row.is_peer == is_peer), default=0)
        for is_peer in (False, True)
    )
    intro = (
        f"{machine} Llamas in bfloat16 in the page cache, in shards of up to 500 MB; interleaved, "
        f"{ours} rounds of ours and of the copies, {peers} of the peers; median (min..max)."
    )
    parts = [intro]
    for comparison in comparisons:
        parameters = comparison.llama.parameters
        nbytes = f"{2 * parameters / 1e6:,.0f} MB"
        parts += [
            f"### {comparison.size}: {parameters:,} parameters, {nbytes}",
            table(_HEAD, _cells(comparison.rows)),
            _gist(comparison.rows),
        ]
    return "\n\n".join(parts)


def _cells(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    copy = _seconds(rows[0])
    for row in rows:
        if row.failure:
            yield row.way, row.failure
            continue
        taken = row.taken
        whole = [one.process_seconds for one in taken if one.process_seconds is not None]
        cpu = [one.cpu_seconds for one in taken if one.cpu_seconds is not None]
        yield (
            row.way,
            spread((one.seconds for one in taken), 2),
            f"{_seconds(row) / copy:.2f}",
            spread(whole, 2) if whole else "",
            spread(cpu, 2) if cpu else "",
            spread((one.added_anonymous_bytes / 1e6 for one in taken), 1),
            spread(one.anonymous_bytes / 1e6 for one in taken),
            spread(one.resident_bytes / 1e6 for one in taken),
            f"{row.output_bytes / 1e6:,.0f}",
            *_error_cells(row),
        )


def _error_cells(row: Row) -> tuple[str, ...]:
    if row.errors is None:
        return ()
    errors = row.errors
    return (
        f"{100 * errors.relative_rmse:.3f}",
        f"{errors.max_error_steps:.4f}",
        f"{100 * errors.zeros:.4f}",
    )


def _gist(rows: list[Row]) -> str:
    named = {row.way: _seconds(row) for row in rows if row.taken}
    own = named[OURS]
    text = (
        f"{OURS} took {own / named[COPY]:.2f} times as long as {COPY} and "
        f"{own / named[FLUSHED_COPY]:.2f} times as long as {FLUSHED_COPY}; from claim to success, "
        f"{named[JOB] / named[COPY]:.2f} and {named[JOB] / named[FLUSHED_COPY]:.2f} times."
    )
    peers = {row.way: _seconds(row) for row in rows if row.is_peer and row.taken}
    if not peers:
        return text
    fastest = min(peers, key=peers.__getitem__)
    return (
        f"{text} The fastest peer, {fastest}, took {peers[fastest] / own:.1f} times as long as it."
    )


def _seconds(row: Row) -> float:
    return median(one.seconds for one in row.taken)
