"""A transformers folder as something that can be run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.inputs import Batch, batches_of
from evaluation.models import open_model, resident_parameter_bytes
from evaluation.outputs import Answers, read_answers
from evaluation.subjects import LATENCY_ROWS
from jobs.recipe import Evaluate


class TransformersSubject:
    """A model of a transformers folder.

    Args:
        folder: The folder: the original, or an artifact.
        original: The original's, for its tokenizer.
    """

    def __init__(self, folder: Path, original: Path) -> None:
        self._model = open_model(folder)
        self._original = original
        self.name = f"A {type(self._model).__name__}"

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory."""
        return resident_parameter_bytes(self._model)

    def batches(self, dataset: Path | None, wanted: Evaluate) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""
        return batches_of(self._model, self._original, dataset, wanted)

    def answer(self, batch: Batch) -> Any:  # noqa: ANN401 - transformers has no types
        """Run it."""
        return self._model(**batch.inputs)

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401
        """Take what is compared out of what it gave."""
        return read_answers(self._model, batch, output)

    def latency_rows(self, most: int) -> tuple[int, ...]:
        """Give how many rows at a time its latency is measured of."""
        return tuple(rows for rows in LATENCY_ROWS if rows <= most)
