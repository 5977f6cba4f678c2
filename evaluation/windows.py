"""The windows of a data set: rows that are read together, and what has to be known before."""

from collections.abc import Iterator
from pathlib import Path

from evaluation.answer_files import row_bytes
from evaluation.answering import length_of
from evaluation.faults import blamed_on
from evaluation.inputs import Batch, Span
from evaluation.subjects import Subject
from jobs.dataset_rows import count_rows
from jobs.inference import Column
from jobs.inferring import InferStep
from jobs.problems import Problem

#: Of the inputs and answers of the rows that are read together, sorted by length and put back in
#: the data set's order.
_WINDOW_BYTES = 16 * 1024**2
_MOST_WINDOW_ROWS = 1024


def rows_of(dataset: Path, step: InferStep) -> int:
    """Give how many rows of a data set are wanted.

    Args:
        dataset: The uploaded file.
        step: What is wanted.

    Returns:
        One at least.

    Raises:
        Problem: `invalid_dataset`: it has none, or cannot be read.
    """
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        found = count_rows(dataset)
        if found is None:
            from pyarrow import parquet  # noqa: PLC0415 - most data sets are no parquet

            found = int(parquet.ParquetFile(dataset, memory_map=True).metadata.num_rows)
    if not found:
        raise Problem("invalid_dataset", "The data set has no rows.")
    return found if step.rows is None else min(found, step.rows)


def first_row(subject: Subject, dataset: Path, step: InferStep) -> Batch:
    """Read the first row of a data set, by which it is told what all are like.

    Args:
        subject: The model that it is for.
        dataset: The uploaded file.
        step: What is wanted.

    Returns:
        A batch of it alone.

    Raises:
        Problem: `invalid_dataset`: there is none, or it cannot be read.
    """
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        first = next(subject.batches(dataset, Span(1, 1, step.max_length)), None)
    if first is None:
        raise Problem("invalid_dataset", "The data set has no rows.")
    return first


def windows(
    subject: Subject,
    dataset: Path,
    step: InferStep,
    rows: int,
    first: Batch,
    columns: tuple[Column, ...],
    *,
    done: int = 0,
) -> Iterator[Batch]:
    """Read the data set, as many rows at a time as take little memory.

    Args:
        subject: The model that the rows are for.
        dataset: The uploaded file.
        step: What is wanted.
        rows: How many rows.
        first: The first of them.
        columns: What is answered to each.
        done: How many to leave out, which is so many whole windows.

    Yields:
        The same windows each time, those apart that are left out.

    Raises:
        Problem: `invalid_dataset`, with the row.
    """
    wanted = 1 if step.batch_size == "auto" else step.batch_size
    size = max(_window_rows(first, columns, step.max_length), wanted)
    batches = subject.batches(dataset, Span(rows, size, step.max_length, skipped=done))
    while True:
        with blamed_on("invalid_dataset", f"The rows from {done} on cannot be read"):
            window = next(batches, None)
        if window is None:
            return
        yield window
        done += window.rows


def _window_rows(first: Batch, columns: tuple[Column, ...], max_length: int) -> int:
    nbytes = sum(values.nbytes for values in first.inputs.values())
    if first.mask is not None:
        # The longest row may be as long as any may.
        nbytes = nbytes // max(1, length_of(first)) * max_length
    most = _WINDOW_BYTES // max(1, nbytes + row_bytes(columns))
    return max(1, min(most, _MOST_WINDOW_ROWS))
