"""Reads a file of answers again, and runs some of its rows anew, each alone."""

import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from evaluation.answer_files import Block
from evaluation.answer_readers import read_blocks
from evaluation.faults import blamed_on
from evaluation.freed_memory import give_freed_memory_back
from evaluation.inputs import Span
from evaluation.resident import leave_out_libraries, let_go_of_libraries
from evaluation.running import OpenSubject
from evaluation.slicing import take_rows
from evaluation.subjects import Subject
from jobs.inference import Inference, Recheck
from jobs.inferring import InferStep
from jobs.problems import Problem

#: Rows that are run again: the first, the last, and others drawn by a seed.
_RERUN = 16
_SEED = 0
#: Rows of the data set that are read together, to find those.
_BLOCK_ROWS = 64
#: By how much a row's answers may differ from those of the row alone, over the largest of them:
#: where all is float32, and where something is rounded to less on the way.
_MOST_DIFFERENCE = 1e-4
_MOST_ROUNDED_DIFFERENCE = 5e-2

Row = Mapping[str, np.ndarray]


def recheck(
    open_subject: OpenSubject,
    dataset: Path,
    step: InferStep,
    folder: Path,
    claimed: Inference,
    on_rows: Callable[[int, int], None],
) -> Recheck:
    """Compare a file of answers with what is said of it, and with the model.

    Args:
        open_subject: Opens the model that gave them.
        dataset: The uploaded file.
        step: What was wanted.
        folder: Where the file is.
        claimed: What is said of it.
        on_rows: Told how many rows were run, and of how many.

    Returns:
        What was found: the file holds as many rows as claimed, all of them finite, and those that
        were run again, alone and in this process, are what it says.

    Raises:
        Problem: `invalid_artifact`, with the row.
    """
    started = time.perf_counter()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    give_freed_memory_back()
    leave_out_libraries()
    numbers = _numbers(claimed.rows)
    path = folder / claimed.file
    if path.parent != folder or path.suffix != f".{claimed.format}":
        raise Problem("invalid_artifact", "The file of answers has another name than it should.")
    subject = open_subject()
    # Before pyarrow comes on top.
    let_go_of_libraries()
    kept = _read(path, claimed, numbers)
    worst, done = 0.0, 0
    most = _MOST_ROUNDED_DIFFERENCE if subject.is_rounding else _MOST_DIFFERENCE
    for done, (number, found) in enumerate(_run(subject, dataset, step, claimed, numbers), 1):
        difference = _difference(kept[number], found, most)
        if not difference <= most:
            raise Problem(
                "invalid_artifact",
                f"Row {number} run alone differs from the file by {difference:.3g} of its largest "
                f"answer; {most:g} is allowed.",
            )
        worst = max(worst, difference)
        on_rows(done, len(numbers))
    if done != len(numbers):
        raise Problem("invalid_artifact", f"The data set has fewer rows than {claimed.rows}.")
    return Recheck(
        rows=claimed.rows,
        rerun=len(numbers),
        max_difference=worst,
        seconds=time.perf_counter() - started,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _numbers(rows: int) -> list[int]:
    drawn = random.Random(_SEED).sample(range(rows), min(rows, _RERUN))  # noqa: S311 - no secret
    return sorted({0, rows - 1, *drawn})


def _read(path: Path, claimed: Inference, numbers: list[int]) -> dict[int, Row]:
    """Go through all rows of a file, and keep some."""
    kept: dict[int, Row] = {}
    rows = 0
    for block in read_blocks(path, claimed.format, claimed.columns):
        count = len(next(iter(block.values())))
        _require_sound(path, block, rows)
        for number in numbers:
            if rows <= number < rows + count:
                kept[number] = {name: values[number - rows] for name, values in block.items()}
        rows += count
    if rows != claimed.rows:
        raise Problem("invalid_artifact", f"{path.name} holds {rows} rows, not {claimed.rows}.")
    return kept


def _require_sound(path: Path, block: Block, first: int) -> None:
    for name, values in block.items():
        if not np.isfinite(values).all():
            raise Problem(
                "invalid_artifact", f"{path.name} holds a {name} that is NaN after row {first}."
            )
    if "label" in block and (block["label"] != block["probabilities"].argmax(1)).any():
        raise Problem(
            "invalid_artifact",
            f"{path.name} holds a label after row {first} that is not likeliest.",
        )


def _run(
    subject: Subject, dataset: Path, step: InferStep, claimed: Inference, numbers: list[int]
) -> Iterator[tuple[int, Row]]:
    span = Span(claimed.rows, _BLOCK_ROWS, step.max_length, frozenset(numbers))
    left = iter(numbers)
    with torch.inference_mode(), blamed_on("invalid_artifact", "Rows cannot be run again"):
        for batch in subject.batches(dataset, span):
            for i in range(batch.rows):
                found = subject.infer(take_rows(batch, torch.tensor([i])), claimed.output)
                yield next(left), {name: values[0].numpy() for name, values in found.items()}


def _difference(kept: Row, found: Row, most: float) -> float:
    """Give the largest difference of two rows' numbers; infinite where a choice was another."""
    worst = 0.0
    for name, values in found.items():
        if values.dtype.kind != "f":
            continue
        scale = max(1.0, float(np.abs(values).max()))
        worst = max(worst, float(np.abs(values - kept[name]).max()) / scale)
    for name, values in found.items():
        # Of two that are about equally likely, either may be taken.
        if values.dtype.kind != "f" and (values != kept[name]).any() and not _is_tie(kept, most):
            return float("inf")
    return worst


def _is_tie(kept: Row, most: float) -> bool:
    if "probabilities" in kept:
        second, first = np.sort(kept["probabilities"])[-2:]
        return bool(first - second <= most)
    # Of tokens, nothing but the likeliest is known; half of all leaves no other as likely.
    return float(kept["probability"]) <= 0.5 + most
