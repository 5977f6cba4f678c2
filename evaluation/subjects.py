"""What can be run before and after, whatever kind of model it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from evaluation.answers import Kept
from evaluation.inputs import Batch, Span
from evaluation.outputs import Answers
from jobs.inferring import InferOutput
from jobs.recipe import Evaluate

#: How many rows at a time latency is measured of.
LATENCY_ROWS = (1, 8)


class Subject(Protocol):
    """A model that was opened to be run.

    Attributes:
        name: What it is called in problems.
    """

    name: str

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory."""

    def batches(self, dataset: Path | None, wanted: Evaluate | Span) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""

    def answer(self, batch: Batch) -> Any:  # noqa: ANN401 - whatever it gives
        """Run it."""

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401
        """Take what is compared out of what it gave."""

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

    def latency_rows(self, most: int) -> tuple[int, ...]:
        """Give how many rows at a time its latency is measured of."""
