"""One try of a micro-batch: forward and backward of the longest rows, and its peak."""

from collections.abc import Callable, Mapping

import torch

from jobs.finetuning import FinetuneStep
from jobs.training import Decision
from training.memory import MemoryGauge, OutOfMemory, peak_of
from training.objectives import loss_sum, task_of
from training.offloading import room_for_states
from training.trainables import Trainable

#: Gives so many of the longest rows, as a batch.
LongestRows = Callable[[int], Mapping[str, torch.Tensor]]


class Prober:
    """Tries micro-batches, and keeps what came of each.

    Args:
        trainable: The model.
        step: What is to be done.
        longest_rows: Gives the rows that take most.
        gauge: Measures memory, and knows the limit.

    Attributes:
        decisions: What was tried, in order.
    """

    decisions: list[Decision]

    def __init__(
        self,
        trainable: Trainable,
        step: FinetuneStep,
        longest_rows: LongestRows,
        gauge: MemoryGauge,
    ) -> None:
        self.decisions = []
        self._trainable = trainable
        self._step = step
        self._longest_rows = longest_rows
        self._gauge = gauge

    def probe(
        self, rows: int, savings: tuple[str, ...], parameters: Mapping[str, torch.nn.Parameter]
    ) -> Decision:
        """Run forward and backward on the longest rows; one row twice.

        Args:
            rows: How many.
            savings: What is turned on.
            parameters: What is trained, by name; their gradients are zero afterwards.

        Returns:
            What came of it; it is among the decisions, too.
        """
        peak = None
        # Where a step follows each gradient at once, each is let go at once.
        follow = _take_room_and_forget if "offload_optimizer" in savings else _forget
        hooks = [
            parameter.register_post_accumulate_grad_hook(follow)  # type: ignore[no-untyped-call]
            for parameter in parameters.values()
            if "optimizer_in_backward" in savings
        ]
        # What libraries keep of the first try is there in the second one, and in all of training:
        # of one row, it may be what decides.
        times = 2 if rows == 1 else 1
        try:
            for _ in range(times):
                found = peak_of(lambda: self._learn(self._longest_rows(rows)), self._gauge)
                peak = max(found, peak or 0)
        except OutOfMemory:
            peak = None
        finally:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            for hook in hooks:
                hook.remove()
        return self.decide(rows, savings, peak)

    def peak_of_part(self, row: Mapping[str, torch.Tensor], tokens: int, length: int) -> int | None:
        """Give the peak of the first tokens of a row.

        Args:
            row: A batch of one row.
            tokens: How many tokens it has.
            length: How many of them are taken.

        Returns:
            The peak in bytes; None where not even they fit.
        """
        part = {
            name: values[:, :length] if values.shape[1:2] == (tokens,) else values
            for name, values in row.items()
        }
        try:
            return peak_of(lambda: self._learn(part), self._gauge)
        except OutOfMemory:
            return None

    def decide(
        self,
        rows: int,
        savings: tuple[str, ...],
        peak_bytes: int | None,
    ) -> Decision:
        """Put down what came of a try.

        Args:
            rows: Of the micro-batch.
            savings: What was turned on.
            peak_bytes: What it took; None where memory ran out.

        Returns:
            The same as a decision.
        """
        limit = self._gauge.limit_bytes
        fits = peak_bytes is not None and peak_bytes <= limit
        decision = Decision.model_validate(
            {
                "micro_batch_size": rows,
                "savings": savings,
                "peak_bytes": peak_bytes,
                "limit_bytes": limit,
                "outcome": "out_of_memory"
                if peak_bytes is None
                else "fits"
                if fits
                else "too_large",
            }
        )
        self.decisions.append(decision)
        return decision

    def _learn(self, fields: Mapping[str, torch.Tensor]) -> None:
        task = task_of(self._trainable.objective, fields)
        logits = self._trainable.logits(task.inputs)
        loss = loss_sum(self._trainable.objective, logits, task, self._step) / max(1, task.count)
        del logits
        loss.backward()  # type: ignore[no-untyped-call]


def _take_room_and_forget(parameter: torch.Tensor) -> None:
    room_for_states(parameter)
    _forget(parameter)


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None
