"""Runs the rows of a data set that were read together, and puts the answers in their order."""

from collections.abc import Callable

import numpy as np
import torch

from evaluation.answer_files import Block
from evaluation.answers import Kept
from evaluation.batch_sizes import BatchSizer
from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from evaluation.resident import PeakMeter
from evaluation.slicing import lengths_of, take_rows
from evaluation.subjects import Subject
from jobs.inference import Column
from jobs.inferring import InferOutput
from jobs.problems import Problem

#: Before the first row as it is, so much of the longest one is run, to see what more would take.
_FIRST_SHARES = (8, 4, 2)


class Answering:
    """A model that answers rows.

    Args:
        subject: The model.
        output: What of its answers is kept.
        first: Any row, of which as little is run as tells what answers are like.

    Attributes:
        columns: What a row's answers are.
        rows: How many were answered.
        tokens: How many tokens they had, padding apart; None where rows have none.
        batches: In how many batches.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`: the model does not take the row.
    """

    columns: tuple[Column, ...]
    rows: int
    tokens: int | None
    batches: int

    def __init__(self, subject: Subject, output: InferOutput, first: Batch) -> None:
        self._subject = subject
        self._output: InferOutput = output
        self.rows, self.tokens, self.batches = 0, None, 0
        self.columns = _columns_of(self._infer(cut(first, _FIRST_SHARES[0])))

    def resume(self, rows: int, tokens: int | None, batches: int) -> None:
        """Count what an attempt before this one has answered."""
        self.rows, self.tokens, self.batches = rows, tokens, batches

    def begin(self, window: Batch) -> None:
        """Run a little of a row, so that what any run takes for once is no part of a batch."""
        self._infer(cut(_longest_row(window), _FIRST_SHARES[0]))

    def try_lengths(self, window: Batch, sizer: BatchSizer, meter: PeakMeter) -> None:
        """Run more and more of the longest row, each time sure that the next fits.

        Args:
            window: Some rows.
            sizer: Learns what that takes, and refuses what would not fit.
            meter: Tells what it takes.
        """
        longest = _longest_row(window)
        if longest.mask is None:
            return
        for share in _FIRST_SHARES[1:]:
            part = cut(longest, share)
            length = length_of(part)
            sizer.require(1, length, in_the_end=length_of(longest))
            self._infer(part)
            sizer.observe(1, length, meter.take())

    def answer(
        self, window: Batch, sizer: BatchSizer, meter: PeakMeter, on_rows: Callable[[int], None]
    ) -> Block:
        """Answer rows, the longest first, in batches of similar length.

        Args:
            window: The rows.
            sizer: Says how many are run together, and learns what that takes.
            meter: Tells what it takes.
            on_rows: Told how many rows were answered so far.

        Returns:
            The answers in the order of the rows.

        Raises:
            Problem: `invalid_dataset`, `evaluation_failed`, `memory_budget_exceeded`.
        """
        found = {c.name: np.empty((window.rows, *c.shape), c.dtype) for c in self.columns}
        lengths = lengths_of(window)
        order = torch.arange(window.rows)
        if lengths is not None and window.mask is not None:
            order = torch.argsort(lengths, descending=True, stable=True)
            self.tokens = (self.tokens or 0) + int(window.mask.sum())
        done = 0
        while done < window.rows:
            length = 1 if lengths is None else int(lengths[order[done]])
            chosen = order[done : done + sizer.rows_for(length, window.rows - done)]
            self._put(self._infer(take_rows(window, chosen)), found, chosen)
            sizer.observe(len(chosen), length, meter.take())
            done += len(chosen)
            self.batches += 1
            self.rows += len(chosen)
            on_rows(self.rows)
        return found

    def _infer(self, batch: Batch) -> Kept:
        name = self._subject.name
        with blamed_on("invalid_dataset", f"{name} does not take the rows from {self.rows} on"):
            return self._subject.infer(batch, self._output)

    def _put(self, kept: Kept, found: dict[str, np.ndarray], rows: torch.Tensor) -> None:
        columns = _columns_of(kept)
        if columns != self.columns:
            raise Problem(
                "evaluation_failed",
                f"The model answers some rows with {_shapes(columns)}, and others with "
                f"{_shapes(self.columns)}: there is no file of such answers.",
            )
        for name, values in kept.items():
            if not bool(torch.isfinite(values).all()):
                raise Problem(
                    "evaluation_failed",
                    f"The model answers NaN or infinity somewhere in the rows from {self.rows} on.",
                )
            found[name][rows.numpy()] = values.numpy()


def cut(row: Batch, share: int) -> Batch:
    """Give a batch's first tokens, one part of so many; all of it where it has no tokens."""
    return take_rows(row, torch.arange(row.rows), max(1, length_of(row) // share))


def length_of(batch: Batch) -> int:
    """Give the tokens of a batch's longest row; 1 where rows have none."""
    lengths = lengths_of(batch)
    return 1 if lengths is None else int(lengths.max())


def _longest_row(window: Batch) -> Batch:
    lengths = lengths_of(window)
    row = 0 if lengths is None else int(lengths.argmax())
    return take_rows(window, torch.tensor([row]))


def _columns_of(kept: Kept) -> tuple[Column, ...]:
    return tuple(
        Column(
            name=name,
            dtype="float32" if values.is_floating_point() else "int64",
            shape=tuple(values.shape[1:]),
        )
        for name, values in kept.items()
    )


def _shapes(columns: tuple[Column, ...]) -> str:
    return ", ".join(f"{column.name} {list(column.shape)}" for column in columns)
