"""What the model that came in answers to every row, for the compressed one to learn from.

It is written down beside the rows before the other one is opened, so no more than one model is in
memory at any time. Of a large vocabulary only the likeliest tokens are kept, and what is left as
one (arXiv 1503.02531, with its temperature; the rest as one class is a bound from below).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from training.divergence import CHOICES, SHARES
from training.memory import fits
from training.rows import Row, rows_of
from training.trainables import Trainable

_MOST_CHOICES = 32
#: Rows that the teacher is run on at one time.
_ROWS = 4


def taught_rows(teacher: Trainable, dataset: Path, step: FinetuneStep) -> Iterator[Row]:
    """Read a data set as rows, each with what a model answers to it.

    Args:
        teacher: The model that came in.
        dataset: The uploaded file.
        step: How rows are read, and the temperature.

    Yields:
        The rows, in order, each with two more fields: the likeliest classes, int32 [T, K] or [K],
        and the logarithm of their probabilities at the step's temperature, float32.

    Raises:
        Problem: `memory_budget_exceeded`: not one row fits.
    """
    teacher.module.eval()
    few = step.model_copy(update={"batch_size": _ROWS})
    for batch in teacher.batches(dataset, few):
        kept = _answers(teacher, batch.inputs, step.temperature)
        for row, (indices, values) in zip(rows_of(batch), kept, strict=True):
            # Of a row there is one answer, or one at each of its tokens.
            is_whole = indices.ndim == 1
            tokens = None if is_whole else row.tokens
            answered = {CHOICES: indices[:tokens].clone(), SHARES: values[:tokens].clone()}
            whole = row.whole | answered.keys() if is_whole else row.whole
            yield Row({**row.fields, **answered}, row.tokens, whole)


def _answers(
    teacher: Trainable, inputs: Mapping[str, torch.Tensor], temperature: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Give what is kept of the answer to each row; one row at a time where more do not fit."""
    rows = len(next(iter(inputs.values())))
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def answer(part: Mapping[str, torch.Tensor]) -> None:
        with torch.inference_mode():
            logits = teacher.logits(part)
            found.extend(_likeliest(row, temperature) for row in logits)

    if fits(partial(answer, inputs)):
        return found
    found.clear()
    for row in range(rows):
        part = {name: values[row : row + 1] for name, values in inputs.items()}
        if not fits(partial(answer, part)):
            raise Problem(
                "memory_budget_exceeded",
                "To learn from the model that came in, it is run first, and memory ran out with "
                "one row at a time. Raise the budget, lower max_length, or leave distill out.",
            )
    return found


def _likeliest(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the likeliest classes of a row, or of each of its tokens, and how likely they are."""
    shares = (logits.float().cpu() / temperature).log_softmax(-1)
    kept = shares.topk(min(_MOST_CHOICES, shares.shape[-1]), -1)
    return kept.indices.to(torch.int32), kept.values
