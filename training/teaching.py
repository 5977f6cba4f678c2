"""What the model that came in answers to every row, for the compressed one to learn from.

It is written down beside the rows before the other one is opened, so no more than one model is in
memory at any time. Of a large vocabulary only the likeliest tokens are kept, and what is left as
one (arXiv 1503.02531, with its temperature; the rest as one class is a bound from below).
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from jobs.finetuning import FinetuneStep
from training.divergence import CHOICES, SHARES
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
    """
    teacher.module.eval()
    few = step.model_copy(update={"batch_size": _ROWS})
    for batch in teacher.batches(dataset, few):
        with torch.inference_mode():
            logits = teacher.logits(batch.inputs).float().cpu()
            shares = (logits / step.temperature).log_softmax(-1)
            kept = shares.topk(min(_MOST_CHOICES, shares.shape[-1]), -1)
        # Of a row there is one answer, or one at each of its tokens.
        is_whole = logits.ndim == 2
        for number, row in enumerate(rows_of(batch)):
            tokens = None if is_whole else row.tokens
            answered = {
                CHOICES: kept.indices[number, :tokens].to(torch.int32).clone(),
                SHARES: kept.values[number, :tokens].clone(),
            }
            whole = row.whole | answered.keys() if is_whole else row.whole
            yield Row({**row.fields, **answered}, row.tokens, whole)
