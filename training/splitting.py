"""Which rows are trained on and which held out, and whether anything can be learned from them."""

from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from training.batches import RowOrder
from training.loop import Rows
from training.objectives import task_of
from training.rows import RowStore
from training.trainables import Trainable


def split_rows(store: RowStore, step: FinetuneStep, trainable: Trainable) -> Rows:
    """Say which rows are trained on, and which held out.

    Args:
        store: All rows.
        step: How many are held out, and the size of a batch.
        trainable: What learns from them.

    Returns:
        Both, and the order of those that are trained on.

    Raises:
        Problem: `invalid_dataset`: none is left to train on, or there is nothing to learn from any
            of them.
    """
    held_out = step.evaluation_rows if step.evaluate_every else 0
    if held_out >= len(store):
        raise Problem(
            "invalid_dataset",
            f"The data set has {len(store)} rows, of which evaluation_rows holds out {held_out}: "
            "none is left to train on.",
        )
    order = RowOrder(len(store) - held_out, step.batch_size, step.seed)
    rows = Rows(store, held_out, order)
    _refuse_untold(trainable, rows)
    return rows


def _refuse_untold(trainable: Trainable, rows: Rows) -> None:
    """Refuse rows none of which says what is right, such as those of a single token."""
    held_out = range(rows.trained, len(rows.store))
    for which, numbers in (("trained", range(rows.trained)), ("held-out", held_out)):
        if len(numbers) and not any(_targets(trainable, rows, number) for number in numbers):
            raise Problem(
                "invalid_dataset",
                f"None of the {len(numbers)} {which} rows has anything to learn for the objective "
                f"{trainable.objective}: next tokens need rows of two tokens or more, hidden ones "
                "a token that is no special one.",
            )


def _targets(trainable: Trainable, rows: Rows, number: int) -> int:
    """Count the targets of a row."""
    fields = rows.store.collate([number])
    masking = trainable.masking
    fields = masking.hide(fields, [number], (0,)) if masking else fields
    return task_of(trainable.objective, fields).count
