"""What a model learns: which outputs are looked at, and the loss as a sum over them.

Sums, not means: the loss of an effective batch is the sum over all its micro-batches by the number
of all their targets, whatever each of them holds (transformers #34191).

Dimension key: B rows, T tokens, C classes or tokens of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from evaluation.inputs import MASK
from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from training.divergence import CHOICES, SHARES, divergence_sum
from training.rows import LABELS

#: A target that nothing is expected of.
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """What a model is given, and what it is to answer.

    Attributes:
        inputs: What it takes.
        targets: int64 [B, T] or [B], `IGNORED` where nothing is expected; float [B, C] of values.
        taught: Classes, and logarithms of their shares, as another model answered; or None.
    """

    inputs: Mapping[str, torch.Tensor]
    targets: torch.Tensor
    taught: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def count(self) -> int:
        """How many targets there are."""
        if self.targets.is_floating_point():
            return self.targets.numel()
        return int((self.targets != IGNORED).sum())


def task_of(objective: str, fields: Mapping[str, torch.Tensor]) -> Task:
    """Tell what of a batch a model is given, and what it is to answer.

    Args:
        objective: `causal_lm`: each token after all before it; `masked_lm`: those of the labels,
            [B, T]; `classification`: each row's label; `regression`: each row's values.
        fields: The batch.

    Returns:
        The task. Padding, and what follows it, is no target.

    Raises:
        Problem: `invalid_dataset`: the rows have no labels, and need some.
    """
    inputs = {name: v for name, v in fields.items() if name not in (LABELS, CHOICES, SHARES)}
    taught = (fields[CHOICES], fields[SHARES]) if CHOICES in fields else None
    if objective == "causal_lm":
        return Task(inputs, _next_tokens(inputs), taught)
    if LABELS not in fields:
        raise Problem(
            "invalid_dataset",
            f"The rows have no labels, which the objective {objective} learns. Give each row one.",
        )
    labels = fields[LABELS]
    return Task(inputs, labels.float() if objective == "regression" else labels, taught)


def loss_sum(
    objective: str, logits: torch.Tensor, task: Task, step: FinetuneStep | None = None
) -> torch.Tensor:
    """Give the loss of a micro-batch.

    Args:
        objective: As of `task_of`.
        logits: What the model answers, [B, T, C] or [B, C].
        task: What it was to answer.
        step: How much of the loss is the divergence from what another model answered; None is
            nothing of it.

    Returns:
        The sum of the targets' losses, float32: cross-entropies in nats, or squared differences.

    Raises:
        Problem: `invalid_dataset`: the answers are not of the targets' shape.
    """
    targets = task.targets.to(logits.device)
    if step is not None and step.distill and task.taught is not None:
        choices, shares = (values.to(logits.device) for values in task.taught)
        is_target = targets != IGNORED
        learnt = divergence_sum(logits, choices, shares, is_target, step.temperature)
        if step.distill == 1:
            return learnt
        return step.distill * learnt + (1 - step.distill) * _own_loss(objective, logits, targets)
    return _own_loss(objective, logits, targets)


def _own_loss(objective: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if objective == "regression":
        values = logits.float().reshape(len(logits), -1)
        expected = targets.reshape(len(targets), -1)
        # One shape would be stretched to the other one.
        _require_alike(values, expected.shape)
        return F.mse_loss(values, expected, reduction="sum")
    _require_alike(logits, (*targets.shape, logits.shape[-1]))
    rows = logits.float().flatten(0, -2)
    return F.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _require_alike(logits: torch.Tensor, shape: Sequence[int]) -> None:
    if tuple(logits.shape) != tuple(shape):
        raise Problem(
            "invalid_dataset",
            f"The model answers {list(logits.shape)}, and what it is to learn is {list(shape)}.",
        )


def _next_tokens(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Give what follows each token; nothing is expected after the last one of a row."""
    ids = inputs["input_ids"]
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    mask = inputs.get(MASK)
    if mask is not None:
        # Padding may come first, too: what follows it was predicted from nothing.
        is_known = mask[:, 1:].bool() & mask[:, :-1].bool()
        targets[:, :-1][~is_known] = IGNORED
    return targets
