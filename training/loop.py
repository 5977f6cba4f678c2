"""The loop of training: effective batches, each a few rows at a time.

A step's loss is the sum over all its targets by their number, whichever micro-batch they are in, so
its gradient is that of the effective batch in one piece; it is clipped once, and the learning rate
belongs to the step (field's faults: transformers #34191).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from training.batches import RowOrder, micro_batches
from training.checkpoints import Record
from training.in_backward import stepping_in_backward
from training.masks import hold_zeros
from training.memory import fits
from training.objectives import Task, loss_sum, task_of
from training.offloading import step_by_parameter
from training.rows import RowStore
from training.schedules import learning_rate_at
from training.settling import Setting
from training.trainables import Trainable

#: Stands for the epoch where tokens of held-out rows are hidden.
_LOOKING = 2**32


@dataclass(frozen=True)
class Rows:
    """The rows of a training, and which of them are held out.

    Attributes:
        store: All of them; the last `held_out` are not trained on.
        held_out: How many.
        order: The rows of every step.
    """

    store: RowStore
    held_out: int
    order: RowOrder

    @property
    def trained(self) -> int:
        """How many rows are trained on."""
        return len(self.store) - self.held_out


@dataclass
class Loop:
    """A training that is under way.

    Attributes:
        trainable: The model.
        sparse: Names of those whose zeros stay zero.
        step: What is asked for.
        rows: On what.
        setting: Rows at a time, and the optimizer.
        total: How many steps there are.
        record: How far it is.
    """

    trainable: Trainable
    sparse: tuple[str, ...]
    step: FinetuneStep
    rows: Rows
    setting: Setting
    total: int
    record: Record
    _epoch: int = 0

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return self.setting.parameters

    def advance(self, held_bytes: Callable[[], int]) -> float:
        """Do one optimizer step.

        Args:
            held_bytes: Tells the memory that is held.

        Returns:
            Its loss, the mean over the targets of the effective batch.

        Raises:
            Problem: `training_diverged`: the loss is not a number; `memory_budget_exceeded`: no
                row fits any more.
        """
        started = time.perf_counter()
        done = self.record.steps_done
        self._epoch = done // self.rows.order.steps_per_epoch
        numbers = self.rows.order.rows_of(done)
        rate = learning_rate_at(self.step, done, self.total)
        for group in self.setting.optimizer.param_groups:
            group["lr"] = rate
        if "optimizer_in_backward" in self.setting.savings:
            with stepping_in_backward(self.setting.optimizer, self._prepare):
                loss = self._gradients(numbers)
        else:
            loss = self._gradients(numbers)
            self._update()
        self.record.steps_done = done + 1
        self.record.rows_seen += len(numbers)
        self.record.tokens_seen += int(self.rows.store.tokens[numbers].sum())
        self.record.seconds += time.perf_counter() - started
        self.record.add_loss(loss, rate, held_bytes())
        return loss

    def look(self) -> float:
        """Give the mean loss on the held-out rows.

        Returns:
            It is finite.

        Raises:
            Problem: `training_diverged`: it would not be; `memory_budget_exceeded`: not one row
                fits.
        """
        # The same tokens are hidden in every look.
        self._epoch = _LOOKING
        self.trainable.module.eval()
        found: list[tuple[float, int]] = []
        with torch.inference_mode():
            # They may be longer than the rows by which it was found how many fit.
            while not fits(partial(self._look, found)):
                self._halve()
        self.trainable.set_training()
        loss = sum(loss for loss, _ in found) / max(1, sum(count for _, count in found))
        if not math.isfinite(loss):
            raise Problem(
                "training_diverged",
                f"The loss on held-out rows after step {self.record.steps_done} is {loss}. Lower "
                "learning_rate, or look for values in these rows that are no numbers.",
            )
        return loss

    def _look(self, found: list[tuple[float, int]]) -> None:
        """Put down the losses of held-out rows and how many targets these have."""
        found.clear()
        held_out = np.arange(self.rows.trained, len(self.rows.store))
        size = self.setting.micro_batch_size
        for chosen in micro_batches(held_out, self.rows.store.tokens, size):
            task = self._task(chosen)
            # Held-out rows tell how good it is, not how like the other model.
            logits = self.trainable.logits(task.inputs)
            found.append((float(loss_sum(self.trainable.objective, logits, task)), task.count))

    def _gradients(self, numbers: np.ndarray) -> float:
        """Put the gradient of the effective batch into the parameters, and give its loss."""
        while True:
            losses: list[float] = []
            if fits(partial(self._accumulate, numbers, losses)):
                return sum(losses)
            self._zero()
            self._halve()

    def _halve(self) -> None:
        """Take half of the rows at a time, after memory ran out all the same."""
        if self.setting.micro_batch_size == 1:
            smallest = self.setting.larger_budget
            raise Problem(
                "memory_budget_exceeded",
                "Memory ran out with one row at a time, although one had been found to fit. A "
                f"budget of {smallest} should do; or lower max_length.",
                extra={"smallest_bytes": smallest},
            )
        self.setting = self.setting.halved()
        # An attempt to come takes them up from there.
        self.record.decisions = [decision.model_dump() for decision in self.setting.decisions]

    def _accumulate(self, numbers: np.ndarray, losses: list[float]) -> None:
        tokens = self.rows.store.tokens
        count = self._count(numbers)
        for chosen in micro_batches(numbers, tokens, self.setting.micro_batch_size):
            # Dropout depends on the step and its rows, not on what was done before.
            torch.manual_seed(_mixed(self.step.seed, self.record.steps_done, int(chosen[0])))
            loss = self._loss(self._task(chosen)) / count
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise self._diverged(losses[-1])
            loss.backward()  # type: ignore[no-untyped-call]

    def _diverged(self, loss: float) -> Problem:
        done = self.record.steps_done
        hint = "Lower learning_rate, or set max_grad_norm."
        if done == 0:
            hint = "Nothing was learned yet: the model's weights or the rows' values are too large "
            hint += "or no numbers."
        return Problem("training_diverged", f"The loss of step {done + 1} is {loss}. {hint}")

    def _count(self, numbers: np.ndarray) -> int:
        """Count the targets of some rows, no fewer than one."""
        if self.trainable.objective in ("classification", "regression"):
            # Each row has as many.
            return len(numbers) * self._task(numbers[:1]).count
        return max(1, sum(self._task(row[None]).count for row in numbers))

    def _task(self, numbers: np.ndarray) -> Task:
        chosen = numbers.tolist()
        fields = self.rows.store.collate(chosen)
        masking = self.trainable.masking
        if masking is not None:
            fields = masking.hide(fields, chosen, (self.step.seed, self._epoch))
        return task_of(self.trainable.objective, fields)

    def _loss(self, task: Task) -> torch.Tensor:
        logits = self.trainable.logits(task.inputs)
        return loss_sum(self.trainable.objective, logits, task, self.step)

    def _prepare(self, parameter: torch.nn.Parameter) -> None:
        if any(parameter is self.parameters[name] for name in self.sparse):
            hold_zeros(parameter)

    def _update(self) -> None:
        for name in self.sparse:
            hold_zeros(self.parameters[name])
        if self.step.max_grad_norm is not None:
            parameters = list(self.parameters.values())
            torch.nn.utils.clip_grad_norm_(parameters, self.step.max_grad_norm, foreach=False)
        if "offload_optimizer" in self.setting.savings:
            step_by_parameter(self.setting.optimizer)
        else:
            self.setting.optimizer.step()
        self._zero()

    def _zero(self) -> None:
        # They stay where they are, so that memory is the same in every step.
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.zero_()


def _mixed(*numbers: int) -> int:
    """Make one seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
