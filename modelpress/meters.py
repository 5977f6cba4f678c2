"""Progress on standard error: a bar where someone watches, plain lines where a log is written."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from modelpress.sizes import format_bytes, format_seconds, printable
from modelpress.values import Job

SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BEFORE_ESTIMATE = 1.0


class Meter(Protocol):
    """Something that shows how far a thing is."""

    def show(self, label: str, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` is there; a total of 0 means that none is known."""


@contextmanager
def meter(stream: TextIO) -> Iterator[Meter]:
    """Give the meter that suits a stream, and take it down in the end.

    Args:
        stream: Where to show it, usually standard error.

    Yields:
        A bar on a terminal, lines elsewhere.
    """
    if not stream.isatty():
        yield LineMeter(stream)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield BarMeter(progress)


class BarMeter:
    """One bar, redrawn in place.

    Args:
        progress: The running display.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, text="")

    def show(self, label: str, done: int, total: int, text: str) -> None:
        """Redraw the bar."""
        self._progress.update(
            self._task, description=label, completed=done, total=total or None, text=text
        )


class LineMeter:
    """A line for each new label and each end, and in between one every few seconds.

    Args:
        stream: Where to write.
        clock: Seconds from any beginning.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._line = ""
        self._label = ""
        self._written_at = 0.0

    def show(self, label: str, done: int, total: int, text: str) -> None:
        """Write a line, unless one was written just now."""
        now = self._clock()
        line = f"{label}: {text}" if text else label
        is_due = now - self._written_at >= SECONDS_BETWEEN_LINES
        is_end = total > 0 and done >= total
        if line == self._line or not (is_due or is_end or label != self._label):
            return
        self._line, self._label, self._written_at = line, label, now
        self._stream.write(f"{line}\n")
        self._stream.flush()


def show_bytes(on: Meter, label: str) -> Callable[[int, int], None]:
    """Make the callback that shows a transfer, with the time left at its mean pace.

    Args:
        on: The meter.
        label: What is transferred.

    Returns:
        A function of the bytes done and the bytes in all.
    """
    begun = time.monotonic()

    def show(done: int, total: int) -> None:
        text = f"{format_bytes(done)} of {format_bytes(total)}"
        seconds = time.monotonic() - begun
        # The pace of the first moments is that of connecting, and would say hours.
        if 0 < done < total and seconds > _SECONDS_BEFORE_ESTIMATE:
            text += f", {format_seconds(seconds * (total - done) / done)} left"
        on.show(label, done, total, text)

    return show


def show_job(on: Meter, job: Job) -> None:
    """Show where a job is."""
    label = job.state if job.attempt <= 1 else f"{job.state}, attempt {job.attempt}"
    if job.state == "queued" and job.queue_position is not None:
        on.show(label, 0, 0, f"{job.queue_position} ahead")
    elif job.is_terminal or job.progress is None:
        on.show(label, 0, 0, "")
    else:
        progress = job.progress
        step = f" (step {progress.step} of {progress.steps})" if progress.steps else ""
        amounts = f"{progress.done} of {progress.total} {progress.unit}"
        if progress.unit == "bytes":
            amounts = f"{format_bytes(progress.done)} of {format_bytes(progress.total)}"
        if progress.loss is not None:
            amounts += f", loss {progress.loss:.4g}"
        if progress.rows_per_second is not None:
            amounts += f", {progress.rows_per_second:.3g} rows/s"
        if progress.eta_seconds is not None:
            amounts += f", {format_seconds(progress.eta_seconds)} left"
        phase = printable(progress.phase)
        on.show(f"{label}: {phase}{step}", progress.done, progress.total, printable(amounts))
