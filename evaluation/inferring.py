"""Runs a model over a data set in batches that its budget allows, and writes what it answers."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from evaluation.answer_files import file_metadata, row_bytes
from evaluation.answer_journal import AnswerJournal, Reached
from evaluation.answer_writers import AnswerWriter, open_writer
from evaluation.answering import Answering
from evaluation.batch_sizes import BatchSizer
from evaluation.freed_memory import give_freed_memory_back
from evaluation.inputs import Batch
from evaluation.resident import (
    PeakMeter,
    free_bytes,
    leave_out_libraries,
    let_go_of_libraries,
    level_bytes,
)
from evaluation.running import OpenSubject
from evaluation.windows import first_row, rows_of, windows
from jobs.inference import Inference
from jobs.inferring import InferStep
from jobs.problems import Problem
from jobs.recipe import Budget

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class AnswerPlace:
    """Where answers go.

    Attributes:
        folder: For the file of answers.
        scratch: For how far it is; it outlives a killed attempt, as `folder` does.
        job: Tells what is answered from everything else: what others left counts for nothing.
    """

    folder: Path
    scratch: Path
    job: str


def infer(
    open_subject: OpenSubject,
    dataset: Path,
    step: InferStep,
    place: AnswerPlace,
    budget: Budget,
    on_rows: OnRows,
) -> Inference:
    """Run a model over a data set.

    Args:
        open_subject: Opens it.
        dataset: The uploaded file.
        step: What is wanted.
        place: Where its answers go; where an attempt before this one was killed, it goes on there.
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
    rows = rows_of(dataset, step)
    subject = open_subject()
    let_go_of_libraries()
    if step.format == "parquet":
        import pyarrow.parquet  # noqa: F401, PLC0415 - so that it is counted before any batch

        let_go_of_libraries()
    output = subject.default_output() if step.output == "auto" else step.output
    path = place.folder / f"{output}.{step.format}"
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        first = first_row(subject, dataset, step)
        answering = Answering(subject, output, first)
        columns = answering.columns
        _refuse_large(rows * row_bytes(columns), budget)
        about = file_metadata(subject.class_names, output)
        job = f"{place.job} {path.name} {rows} {columns} {about}"
        journal = stack.enter_context(AnswerJournal(place.scratch, job, path))
        reached = journal.reached
        done, tokens = (reached.rows, reached.tokens or 0) if reached else (0, 0)
        parts = windows(subject, dataset, step, rows, first, columns, done=done)
        begun = time.perf_counter()
        has_names = first.names is not None
        writer = stack.enter_context(
            open_writer(path, step.format, columns, rows, about, journal, has_names=has_names)
        )
        run = _Run(answering, journal, writer, meter, lambda some: on_rows(some, rows))
        sizer = run.answer(parts, step, budget)
    seconds = time.perf_counter() - begun
    if answering.rows != rows:
        raise Problem("invalid_dataset", f"The data set has {answering.rows} rows, not {rows}.")
    meter.take()
    peak_bytes = max(meter.most_bytes, reached.peak_bytes if reached else 0)
    fit, host = sizer.fit, budget.host_memory
    return Inference(
        file=path.name,
        output=output,
        format=step.format,
        columns=columns,
        bytes=path.stat().st_size,
        rows=rows,
        tokens=answering.tokens,
        resumed_at=reached.rows if reached else None,
        batch_size=sizer.largest,
        batches=answering.batches,
        bytes_per_row=None if fit is None else fit.cell_bytes,
        base_bytes=None if fit is None else max(0, round(fit.base_bytes)),
        probes=tuple(sizer.probes),
        rows_per_second=(rows - done) / seconds,
        tokens_per_second=(
            None if answering.tokens is None else (answering.tokens - tokens) / seconds
        ),
        resident_peak_bytes=peak_bytes,
        budget_bytes=host,
        headroom_bytes=None if host is None else host - peak_bytes,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Run:
    """A model that is being run over the windows of a data set."""

    answering: Answering
    journal: AnswerJournal
    writer: AnswerWriter
    meter: PeakMeter
    on_rows: Callable[[int], None]

    def answer(self, parts: Iterator[Batch], step: InferStep, budget: Budget) -> BatchSizer:
        """Find out how many rows fit, unless that is known, and answer all that are left."""
        window = next(parts, None)
        if window is not None:
            self.answering.begin(window)
        self.meter.take()
        wanted = None if step.batch_size == "auto" else step.batch_size
        reached = self.journal.reached
        if reached is not None:
            # As large as they would have been: other batches would round other sums.
            sizer = BatchSizer.resumed(budget.host_memory, wanted, reached.sizer)
            self.answering.resume(reached.rows, reached.tokens, reached.batches)
            self.on_rows(reached.rows)
        else:
            sizer = BatchSizer(budget.host_memory, wanted, level_bytes(), free_bytes())
        if window is None:
            return sizer
        if reached is None:
            self.answering.try_lengths(window, sizer, self.meter)
        for part in chain([window], parts):
            block = self.answering.answer(part, sizer, self.meter, self.on_rows)
            written = self.writer.append(block, part.names)
            self.journal.write(
                Reached(
                    rows=self.answering.rows,
                    tokens=self.answering.tokens,
                    batches=self.answering.batches,
                    peak_bytes=self.meter.most_bytes,
                    sizer=sizer.state,
                    names=part.names,
                    written=written,
                )
            )
        return sizer


def _refuse_large(nbytes: int, budget: Budget) -> None:
    if budget.disk is not None and nbytes > budget.disk:
        raise Problem(
            "disk_budget_exceeded",
            f"The answers take {nbytes} bytes at least; budget.disk is {budget.disk}.",
            extra={"predicted_bytes": nbytes, "budget_bytes": budget.disk},
        )
