"""What is counted while a job runs, for its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.checkpoint import Checkpoint
from jobs.report import StepReport
from jobs.steps import PruneStep, QuantizeStep, Step, method_of
from planning.matrices import Matrix, pruned_count
from planning.plan import Plan


@dataclass
class StepEntry:
    """What one step of the recipe cost and did.

    Attributes:
        seconds: Time spent in its own arithmetic.
        bytes_read: Bytes read for it alone.
        bytes_written: Bytes of the artifact, for the last step.
        tensors_changed: How many tensors it changed.
        weights_pruned: Weights that it set to zero.
        weights_removed: Weights that it left out.
    """

    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    tensors_changed: int = 0
    weights_pruned: int = 0
    weights_removed: int = 0

    def report(self, step: Step) -> StepReport:
        """Give the step's part of the report."""
        return StepReport(
            op=step.op,
            method=method_of(step),
            seconds=self.seconds,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            tensors_changed=self.tensors_changed,
            weights_pruned=self.weights_pruned,
            weights_removed=self.weights_removed,
        )


@dataclass
class TensorEntry:
    """What became of one tensor.

    Attributes:
        zeros_before: Exact zeros that came in.
        zeros_after: Exact zeros that were written.
        squared_error: Sum of squared differences.
        squares: Sum of squares of what came in.
        max_error_steps: Largest rounding difference in scales.
    """

    zeros_before: int = 0
    zeros_after: int = 0
    squared_error: float = 0.0
    squares: float = 0.0
    max_error_steps: float = 0.0

    @property
    def relative_rmse(self) -> float:
        """Root mean square of the differences over that of what came in; 0 where that is 0."""
        return math.sqrt(self.squared_error / self.squares) if self.squares else 0.0


def count_planned(plan: Plan, entries: Sequence[StepEntry]) -> None:
    """Tell the entries what the plan said and the job has done by now.

    Args:
        plan: What was done.
        entries: The entries, one per step.
    """
    targets = plan.selection.targets.values()
    for index, step in enumerate(plan.recipe.steps):
        if isinstance(step, PruneStep):
            pruned = [target for target in targets if index in target.prune_steps]
            entries[index].weights_pruned = _pruned(step, [target.matrix for target in pruned])
            entries[index].tensors_changed = len(pruned)
        elif isinstance(step, QuantizeStep):
            entries[index].tensors_changed = sum(target.scheme is not None for target in targets)
        else:
            entries[index].tensors_changed = sum(target.cut is not None for target in targets)
            entries[index].weights_removed = _elements(plan.model) - _elements(plan.checkpoint)
    for shard in plan.shards:
        entries[-1].bytes_read += shard.source.header.data_bytes
        entries[-1].bytes_written += shard.nbytes


def _elements(checkpoint: Checkpoint) -> int:
    return sum(tensor.elements for _, tensor in checkpoint.walk())


def _pruned(step: PruneStep, matrices: Sequence[Matrix]) -> int:
    sparsity = step.sparsity or 0.0
    elements = [matrix.tensor.elements for matrix in matrices]
    if step.structure != "unstructured":
        return sum(elements) // 2
    if step.scope == "global":
        return pruned_count(sparsity, sum(elements))
    if step.scope == "row":
        return sum(m.channels * pruned_count(sparsity, m.inputs) for m in matrices)
    return sum(pruned_count(sparsity, n) for n in elements)
