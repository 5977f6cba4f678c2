"""Runs a model over a data set in batches that its budget allows, and writes what it answers."""

import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch

from evaluation.answer_files import file_metadata, open_writer, row_bytes
from evaluation.answering import Answering, length_of
from evaluation.batch_sizes import BatchSizer
from evaluation.faults import blamed_on
from evaluation.freed_memory import give_freed_memory_back
from evaluation.inputs import Batch, Span
from evaluation.resident import (
    PeakMeter,
    free_bytes,
    leave_out_libraries,
    let_go_of_libraries,
    level_bytes,
)
from evaluation.running import OpenSubject
from evaluation.subjects import Subject
from jobs.dataset_rows import count_rows
from jobs.inference import Column, Inference
from jobs.inferring import InferStep
from jobs.problems import Problem
from jobs.recipe import Budget

#: Of the inputs and answers of the rows that are read together, sorted by length and put back in
#: the data set's order.
_WINDOW_BYTES = 16 * 1024**2
_MOST_WINDOW_ROWS = 1024

OnRows = Callable[[int, int], None]


def infer(
    open_subject: OpenSubject,
    dataset: Path,
    step: InferStep,
    folder: Path,
    budget: Budget,
    on_rows: OnRows,
) -> Inference:
    """Run a model over a data set.

    Args:
        open_subject: Opens it.
        dataset: The uploaded file.
        step: What is wanted.
        folder: Where the file of answers goes; empty.
        budget: What the process may hold, and how long the file may be.
        on_rows: Told how many rows are done, and of how many.

    Returns:
        What was found. The file has a row for each of the data set's, in its order; none depends
        on which rows it was run with, but for the rounding of floats.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`, `unknown_architecture`;
            `memory_budget_exceeded` and `disk_budget_exceeded` with the smallest that works.
    """
    started = time.perf_counter()
    # Its threads have heaps of their own, and are worth little here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    give_freed_memory_back()
    leave_out_libraries()
    meter = PeakMeter()
    rows = _rows_of(dataset, step)
    subject = open_subject()
    let_go_of_libraries()
    if step.format == "parquet":
        import pyarrow.parquet  # noqa: F401, PLC0415 - so that it is counted before any batch

        let_go_of_libraries()
    output = subject.default_output() if step.output == "auto" else step.output
    path = folder / f"{output}.{step.format}"
    with torch.inference_mode():
        first = _first_row(subject, dataset, step)
        answering = Answering(subject, output, first)
        _refuse_large(rows * row_bytes(answering.columns), budget)
        about = file_metadata(subject.class_names, output)
        windows = _windows(subject, dataset, step, rows, first, answering.columns)
        begun = time.perf_counter()
        sizer = _run(answering, windows, (path, rows, about), step, budget, meter, on_rows)
        seconds = time.perf_counter() - begun
    meter.take()
    fit, host = sizer.fit, budget.host_memory
    return Inference(
        file=path.name,
        output=output,
        format=step.format,
        columns=answering.columns,
        bytes=path.stat().st_size,
        rows=rows,
        tokens=answering.tokens,
        batch_size=sizer.largest,
        batches=answering.batches,
        bytes_per_row=None if fit is None else fit.cell_bytes,
        base_bytes=None if fit is None else max(0, round(fit.base_bytes)),
        probes=tuple(sizer.probes),
        rows_per_second=rows / seconds,
        tokens_per_second=None if answering.tokens is None else answering.tokens / seconds,
        resident_peak_bytes=meter.most_bytes,
        budget_bytes=host,
        headroom_bytes=None if host is None else host - meter.most_bytes,
        seconds=time.perf_counter() - started,
    )


def _run(
    answering: Answering,
    windows: Iterator[Batch],
    file: tuple[Path, int, dict[str, str]],
    step: InferStep,
    budget: Budget,
    meter: PeakMeter,
    on_rows: OnRows,
) -> BatchSizer:
    """Find out how many rows fit, and answer all."""
    path, rows, about = file
    window = next(windows)
    answering.begin(window)
    meter.take()
    wanted = None if step.batch_size == "auto" else step.batch_size
    sizer = BatchSizer(budget.host_memory, wanted, level_bytes(), free_bytes())
    answering.try_lengths(window, sizer, meter)
    has_names = window.names is not None
    with open_writer(
        path, step.format, answering.columns, rows, about, has_names=has_names
    ) as writer:
        for part in chain([window], windows):
            block = answering.answer(part, sizer, meter, lambda done: on_rows(done, rows))
            writer.append(block, part.names)
    if answering.rows != rows:
        raise Problem("invalid_dataset", f"The data set has {answering.rows} rows, not {rows}.")
    return sizer


def _first_row(subject: Subject, dataset: Path, step: InferStep) -> Batch:
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        first = next(subject.batches(dataset, Span(1, 1, step.max_length)), None)
    if first is None:
        raise Problem("invalid_dataset", "The data set has no rows.")
    return first


def _windows(
    subject: Subject,
    dataset: Path,
    step: InferStep,
    rows: int,
    first: Batch,
    columns: tuple[Column, ...],
) -> Iterator[Batch]:
    """Read the data set, as many rows at a time as take little memory."""
    wanted = 1 if step.batch_size == "auto" else step.batch_size
    size = max(_window_rows(first, columns, step.max_length), wanted)
    batches = subject.batches(dataset, Span(rows, size, step.max_length))
    done = 0
    while True:
        with blamed_on("invalid_dataset", f"The rows from {done} on cannot be read"):
            window = next(batches, None)
        if window is None:
            return
        yield window
        done += window.rows


def _rows_of(dataset: Path, step: InferStep) -> int:
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        found = count_rows(dataset)
        if found is None:
            from pyarrow import parquet  # noqa: PLC0415 - most data sets are no parquet

            found = int(parquet.ParquetFile(dataset, memory_map=True).metadata.num_rows)
    if not found:
        raise Problem("invalid_dataset", "The data set has no rows.")
    return found if step.rows is None else min(found, step.rows)


def _window_rows(first: Batch, columns: tuple[Column, ...], max_length: int) -> int:
    nbytes = sum(values.nbytes for values in first.inputs.values())
    if first.mask is not None:
        # The longest row may be as long as any may.
        nbytes = nbytes // max(1, length_of(first)) * max_length
    most = _WINDOW_BYTES // max(1, nbytes + row_bytes(columns))
    return max(1, min(most, _MOST_WINDOW_ROWS))


def _refuse_large(nbytes: int, budget: Budget) -> None:
    if budget.disk is not None and nbytes > budget.disk:
        raise Problem(
            "disk_budget_exceeded",
            f"The answers take {nbytes} bytes at least; budget.disk is {budget.disk}.",
            extra={"predicted_bytes": nbytes, "budget_bytes": budget.disk},
        )
