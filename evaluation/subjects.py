"""What can be run before and after, whatever kind of model it is."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from evaluation.answers import Kept
from evaluation.inputs import Batch, Span
from evaluation.outputs import Answers
from jobs.inferring import InferOutput
from jobs.recipe import Evaluate

#: How many rows at a time latency is measured of.
LATENCY_ROWS = (1, 8)
_LATENCY_RUNS = 9
_LATENCY_SECONDS = 2.0

#: Takes what a model gave for a batch.
Take = Callable[[Batch, Any], None]
#: Told how many rows are done.
OnRows = Callable[[int], None]


class Evaluated(Protocol):
    """A model that was opened to be run, whole or block by block.

    Attributes:
        name: What it is called in problems.
    """

    name: str

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory, at most."""

    @property
    def blocks(self) -> int:
        """How many parts it has of which one is in memory at a time; 0 where all of it is."""

    def batches(self, dataset: Path | None, wanted: Evaluate | Span) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""

    def run(self, batches: Iterable[Batch], take: Take, on_rows: OnRows) -> float:
        """Run it, have what it gives taken in the order of the batches, and give the seconds."""

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401 - whatever it gives
        """Take what is compared out of what it gave."""

    def latency(self, batch: Batch, most: int) -> dict[str, float]:
        """Give the seconds of one forward, by its rows; nothing where no forward is whole."""


class Subject(Evaluated, Protocol):
    """A model that was opened to be run as a whole, and gives answers to be kept."""

    def default_output(self) -> InferOutput:
        """Give what is kept of its answers unless a recipe says it."""

    def infer(self, batch: Batch, wanted: InferOutput) -> Kept:
        """Run it, and keep what is wanted of what it gives, in float32 and int64."""

    @property
    def class_names(self) -> dict[int, str] | None:
        """What its classes are called; None where it has none, or nobody named them."""

    @property
    def is_rounding(self) -> bool:
        """Whether it computes in less than float32, so that batches differ by more."""


def run_each(
    answer: Callable[[Batch], Any], batches: Iterable[Batch], take: Take, on_rows: OnRows
) -> float:
    """Run a model that is in memory over one batch after the other.

    Args:
        answer: Runs it.
        batches: Its inputs.
        take: Given what it gave.
        on_rows: Told how many rows are done.

    Returns:
        The seconds in which it ran, apart from what comes before and after.
    """
    seconds, rows = 0.0, 0
    for batch in batches:
        started = time.perf_counter()
        output = answer(batch)
        seconds += time.perf_counter() - started
        take(batch, output)
        del output
        rows += batch.rows
        on_rows(rows)
    return seconds


def measure_latency(
    answer: Callable[[Batch], Any], batch: Batch, sizes: Iterable[int]
) -> dict[str, float]:
    """Measure how long one forward takes.

    Args:
        answer: Runs a model that is in memory.
        batch: Whose rows are repeated.
        sizes: How many rows at a time.

    Returns:
        The median seconds, by rows.
    """
    found = {}
    for size in sizes:
        repeated = torch.arange(size) % batch.rows
        some = Batch({name: tensor[repeated] for name, tensor in batch.inputs.items()})
        answer(some)
        seconds: list[float] = []
        while len(seconds) < _LATENCY_RUNS and sum(seconds) < _LATENCY_SECONDS:
            started = time.perf_counter()
            answer(some)
            seconds.append(time.perf_counter() - started)
        found[str(size)] = statistics.median(seconds)
    return found
