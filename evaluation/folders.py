"""A transformers folder as something that can be run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from evaluation.answers import Kept, answers_of, default_answer
from evaluation.inputs import Batch, Span, batches_of
from evaluation.models import open_model, resident_parameter_bytes
from evaluation.outputs import Answers, read_answers
from evaluation.subjects import LATENCY_ROWS, OnRows, Take, measure_latency, run_each
from jobs.inferring import InferOutput
from jobs.recipe import Evaluate


class TransformersSubject:
    """A model of a transformers folder, all of it in memory.

    Args:
        folder: The folder: the original, or an artifact.
        original: The original's, for its tokenizer.

    Attributes:
        name: What it is called in problems.
        blocks: 0: it is run as a whole.
    """

    name: str
    blocks = 0

    def __init__(self, folder: Path, original: Path) -> None:
        self._model = open_model(folder)
        self._original = original
        self.name = f"A {type(self._model).__name__}"

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory."""
        return resident_parameter_bytes(self._model)

    def batches(self, dataset: Path | None, wanted: Evaluate | Span) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""
        return batches_of(self._model, self._original, dataset, wanted)

    def run(self, batches: Iterable[Batch], take: Take, on_rows: OnRows) -> float:
        """Run it over one batch after the other."""
        return run_each(self._answer, batches, take, on_rows)

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401
        """Take what is compared out of what it gave."""
        return read_answers(self._model, batch, output)

    def default_output(self) -> InferOutput:
        """Give what is kept of its answers unless a recipe says it."""
        return default_answer(self._model)

    def infer(self, batch: Batch, wanted: InferOutput) -> Kept:
        """Run it, and keep what is wanted of what it gives."""
        return answers_of(self._model, batch, wanted)

    @property
    def class_names(self) -> dict[int, str] | None:
        """What its classes are called; None where it has none, or nobody named them."""
        names: dict[int, str] = self._model.config.id2label or {}
        is_classifier = type(self._model).__name__.endswith("Classification")
        is_named = any(name != f"LABEL_{number}" for number, name in names.items())
        return names if is_classifier and is_named else None

    @property
    def is_rounding(self) -> bool:
        """Whether it computes in less than float32, so that batches differ by more."""
        is_quantized = getattr(self._model.config, "quantization_config", None) is not None
        return is_quantized or any(
            tensor.is_floating_point() and tensor.dtype != torch.float32
            for tensor in self._model.parameters()
        )

    def latency(self, batch: Batch, most: int) -> dict[str, float]:
        """Give the median seconds of one forward, by its rows: no more than so many."""
        return measure_latency(self._answer, batch, [n for n in LATENCY_ROWS if n <= most])

    def _answer(self, batch: Batch) -> Any:  # noqa: ANN401 - transformers has no types
        return self._model(**batch.inputs)
