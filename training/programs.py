"""An exported program (.pt2) as something that can be trained.

Dropout is what the program says: one exported after ``model.eval()`` has none.

Dimension key: B rows, C classes or values.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from evaluation.datasets import read_rows
from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from jobs.program import Program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from jobs.training import QuantizeAware
from planning.program_plan import make_program_plan
from planning.program_training import (
    answer_shape,
    find_trained,
    frozen_statistics,
    is_choice,
    refuse_untrainable,
)
from programs.loading import load_program, row_limits
from programs.running import inputs_of
from training.labels import refuse_wrong_labels
from training.masking import Masking
from training.program_graphs import WIDENED, ProgramGraph
from training.rounded_modules import describe
from training.written_programs import write_program

#: Rows of a data set that are read at a time, at most.
_READ_ROWS = 64
_FLOAT_BYTES = 4


class TrainedProgram:
    """A program, its 16-bit floats in float32.

    Args:
        path: The file, as this project writes it; it is only read.
        dataset: The uploaded file, whose labels say what is learned where the step does not.
        step: What is to be done.
        device: Where it is trained.

    Attributes:
        name: What it is called in problems.
        module: Holds its parameters.
        objective: What it learns: `classification` or `regression`.
        frozen_statistics: How many normalizations keep the statistics that they came with.
        masking: None: it takes tensors, which say nothing of tokens.
        padding: Nothing: its rows are all of one shape.
        rounding_bytes: What its largest rounded weight takes.

    Raises:
        Problem: `finetune_unsupported`, `already_quantized`, `nothing_changed`, `invalid_dataset`,
            `evaluation_failed`.
    """

    name: str
    module: torch.nn.Module
    objective: str
    frozen_statistics: int
    masking: Masking | None
    padding: Mapping[str, int]
    rounding_bytes: int = 0

    def __init__(self, path: Path, dataset: Path, step: FinetuneStep, device: str) -> None:
        self._described = open_program(path)
        refuse_untrainable(self._described, step)
        self.name = "The program"
        self.masking = None
        self.padding = {}
        self.objective = _objective(self._described, dataset, step)
        if step.distill and self.objective == "regression":
            raise Problem(
                "finetune_unsupported",
                "distill learns another model's shares of classes, and the objective regression "
                "has no classes. Leave distill out.",
            )
        self.frozen_statistics = frozen_statistics(self._described)
        self._device = device
        self._limits = row_limits(self._described)
        self._trained = find_trained(self._described, step)
        exported = load_program(path)
        self._dtypes = {
            node.name: WIDENED.get(node.meta["val"].dtype, node.meta["val"].dtype)
            for node in exported.graph.nodes
            if node.name in self._described.inputs
        }
        with blamed_on("evaluation_failed", "The program's graph cannot be run"):
            self._graph = ProgramGraph(exported, self._trained, device)
        self.module = self._graph

    def batches(self, dataset: Path, step: FinetuneStep) -> Iterator[Batch]:
        """Read a data set as batches of what the model takes, the first `step.rows` rows of it."""
        shape = answer_shape(self._described) or []
        start = 0
        for fields in read_rows(dataset, min(_READ_ROWS, step.batch_size), step.rows):
            inputs, labels = inputs_of(self._described, fields)
            if labels is not None:
                refuse_wrong_labels(labels, self.objective, shape, start)
            batch = Batch(inputs, labels)
            start += batch.rows
            yield batch

    def trained_parameters(self, step: FinetuneStep) -> Mapping[str, torch.nn.Parameter]:
        """Give the parameters that the step trains, by name, each once; all others are frozen."""
        self.module.requires_grad_(False)
        trained = {
            name: self._graph.parameter(name) for name in find_trained(self._described, step)
        }
        for parameter in trained.values():
            parameter.requires_grad_(True)
        return trained

    def adapt(self, step: FinetuneStep) -> None:  # noqa: ARG002 - part of the protocol
        """Give nothing: adapters stand beside modules, and a program has none."""
        return

    def round_as(self, recipe: Recipe) -> QuantizeAware:
        """Compute with weights as a recipe's quantize step will round them; say what that is."""
        targets = make_program_plan(self._described, recipe).selection.targets
        matrices = {name: t.matrix for name, t in targets.items() if t.scheme is not None}
        self._graph.round_weights(
            {name: matrix.is_transposed for name, matrix in matrices.items()},
            {name: matrix.tensor.dtype for name, matrix in matrices.items()},
        )
        elements = [matrix.tensor.elements for matrix in matrices.values()]
        self.rounding_bytes = _FLOAT_BYTES * max(elements, default=0)
        return describe(recipe, len(matrices), rounds_inputs=False)

    def logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run it on a micro-batch: [B, C].

        Where it takes no fewer rows than it was exported with, some are repeated, and what it
        gives for these is left out.
        """
        least, most = self._limits
        given = {name: inputs[name].to(self._device, dtype) for name, dtype in self._dtypes.items()}
        rows = len(next(iter(given.values())))
        parts = []
        for start in range(0, rows, most):
            count = min(most, rows - start)
            chosen = start + torch.arange(max(count, least), device=self._device) % count
            is_all = len(chosen) == rows
            with blamed_on("invalid_dataset", "The program does not take the rows"):
                answer = self._graph(given if is_all else {n: t[chosen] for n, t in given.items()})
            if len(answer) != len(chosen):
                raise Problem(
                    "finetune_unsupported",
                    f"For {len(chosen)} rows the program gives {len(answer)}: its first output "
                    "does not begin with the rows of its first input.",
                )
            parts.append(answer[:count])
        answer = torch.cat(parts) if len(parts) > 1 else parts[0]
        return answer.reshape(rows, -1) if self.objective == "regression" else answer

    def checkpoint_activations(self) -> bool:
        """Have activations computed again where gradients need them; False where it cannot."""
        return self._graph.checkpoint()

    def set_training(self) -> None:
        """Go back to training mode; the graph says what is random, in either mode."""
        self.module.train()

    def write(self, folder: Path) -> Mapping[str, int]:
        """Write the model with the weights that it has now, in the form that it came in."""
        values = {
            name: self._graph.parameter(first)
            for first, names in self._trained.items()
            for name in names
        }
        write_program(self._described, values, folder / PROGRAM_NAME)
        return {}


def _objective(described: Program, dataset: Path, step: FinetuneStep) -> str:
    """Tell what is learned, from the labels where the step does not say it."""
    if step.objective != "auto":
        return step.objective
    first = next(iter(read_rows(dataset, 1, 1)))
    _, labels = inputs_of(described, first)
    can_choose = is_choice(answer_shape(described) or [])
    is_number = labels is not None and (labels.is_floating_point() or labels.ndim != 1)
    return "classification" if can_choose and not is_number else "regression"
