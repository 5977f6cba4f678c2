"""What can be trained, whatever kind of model it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from evaluation.inputs import Batch
from jobs.finetuning import FinetuneStep
from jobs.recipe import Recipe
from jobs.training import QuantizeAware
from training.masking import Masking


class Trainable(Protocol):
    """A model that was opened to be trained, its floats in float32.

    Attributes:
        name: What it is called in problems.
        module: Holds its parameters, in training mode but for normalizations that take statistics
            of their batch: a micro-batch's are not those of the effective batch.
        objective: What it learns: `causal_lm`, `masked_lm`, `classification` or `regression`.
        frozen_statistics: How many normalizations keep the statistics that they came with.
        masking: How tokens are hidden, where that is what it learns.
        padding: What rows are padded with, by field, where that is not zero: some models look for
            the end of a row by it.
        rounding_bytes: What its largest weight takes once more where that is rounded to compute
            with; 0 where none is.
    """

    name: str
    module: torch.nn.Module
    objective: str
    frozen_statistics: int
    masking: Masking | None
    padding: Mapping[str, int]
    rounding_bytes: int

    def batches(self, dataset: Path, step: FinetuneStep) -> Iterator[Batch]:
        """Read a data set as batches of what the model takes, the first `step.rows` rows of it."""

    def trained_parameters(self, step: FinetuneStep) -> Mapping[str, torch.nn.Parameter]:
        """Give the parameters that the step trains, by name, each once; all others are frozen."""

    def adapt(self, step: FinetuneStep) -> Mapping[str, torch.nn.Parameter] | None:
        """Freeze all weights, put adapters beside them, and give those; None where it cannot."""

    def round_as(self, recipe: Recipe) -> QuantizeAware:
        """Compute with weights as a recipe's quantize step will round them; say what that is."""

    def set_training(self) -> None:
        """Go back to training mode after the model was looked at in evaluation mode."""

    def logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run it on a micro-batch: [B, T, C] where tokens are predicted, else [B, C]."""

    def checkpoint_activations(self) -> bool:
        """Have activations computed again where gradients need them; False where it cannot."""

    def write(self, folder: Path) -> Mapping[str, int]:
        """Write the model with the weights that it has now, in the form that it came in.

        Adapters are added to their weights before. Gives how many weights of each module those
        would have changed and did not, because they were pruned.
        """
