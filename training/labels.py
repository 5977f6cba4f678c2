"""Labels that a model's answers can be compared with, and no others."""

import math
from collections.abc import Sequence

import torch

from jobs.problems import Problem
from training.rows import LABELS


def refuse_wrong_labels(
    labels: torch.Tensor, objective: str, shape: Sequence[int | None], start: int
) -> None:
    """Refuse labels that are not for what a model answers, by their row.

    Args:
        labels: Of some rows, [B, …].
        objective: `classification` or `regression`.
        shape: What the model answers, [B, C] or [B, …]; sizes that vary as None.
        start: How many rows came before.

    Raises:
        Problem: `invalid_dataset`: they are of another shape or dtype, or one of them is no class,
            or no finite number.
    """
    if objective == "regression":
        _refuse_other_shape(labels, shape[1:])
        wrong = ~torch.isfinite(labels.float()).reshape(len(labels), -1).all(dim=1)
        told = "no finite number that float32 holds"
    else:
        if labels.ndim != 1 or labels.is_floating_point():
            raise Problem(
                "invalid_dataset",
                f"{LABELS} are {labels.dtype} of {list(labels.shape)}; one whole number is needed "
                "for each row.",
            )
        classes = shape[1] or 2**31
        wrong = (labels < 0) | (labels >= classes)
        told = f"none of the model's classes, which are from 0 to {classes - 1}"
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise Problem(
            "invalid_dataset",
            f"The label of row {start + row + 1} is {told}: {str(labels[row].tolist())[:80]}.",
        )


def _refuse_other_shape(labels: torch.Tensor, wanted: Sequence[int | None]) -> None:
    values = math.prod(labels.shape[1:])
    if None not in wanted and values != math.prod(size or 0 for size in wanted):
        raise Problem(
            "invalid_dataset",
            f"{LABELS} are of {list(labels.shape[1:])} for each row; the model answers "
            f"{list(wanted)}.",
        )
