"""What is counted while a job runs, for its report."""

from dataclasses import dataclass, field

from jobs.recipe import Step
from jobs.report import StepReport


@dataclass
class StepEntry:
    """What one step of the recipe cost and did.

    Attributes:
        seconds: Time spent in its own arithmetic.
        bytes_read: Bytes read for it alone.
        bytes_written: Bytes of the artifact, for the last step.
        tensors: Names of the tensors that it changed.
        weights_pruned: Weights that it set to zero.
    """

    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    tensors: set[str] = field(default_factory=set)
    weights_pruned: int = 0

    def report(self, step: Step) -> StepReport:
        """Give the step's part of the report."""
        return StepReport(
            op=step.op,
            method=step.method if step.op == "prune" else step.scheme,
            seconds=self.seconds,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            tensors_changed=len(self.tensors),
            weights_pruned=self.weights_pruned,
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
