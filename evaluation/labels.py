"""Right answers of a data set's rows, as the numbers that a model gives its classes."""

import math
from typing import Any

from jobs.problems import Problem


def label_index(label: object, model: Any) -> int:  # noqa: ANN401 - transformers has no types
    """Give the class that a label means.

    Args:
        label: A class's number, or its name in the model's config.
        model: Whose classes they are.

    Returns:
        The class's number.

    Raises:
        Problem: `invalid_dataset`: the model has no such class.
    """
    names = model.config.label2id or {}
    number = names.get(label, label) if isinstance(label, str) else label
    classes = model.config.num_labels
    if type(number) is int and 0 <= number < classes:
        return number
    known = ", ".join(repr(name) for name in list(names)[:5])
    raise Problem(
        "invalid_dataset",
        f"The label {str(label)[:80]!a} is none of the model's {classes} classes; give a number "
        f"below that, or a name such as {known}.",
    )


def label_value(label: object) -> float:
    """Give the value that a label is, for a model that gives one rather than classes.

    Args:
        label: What stands in the row.

    Returns:
        The value.

    Raises:
        Problem: `invalid_dataset`: it is no finite number.
    """
    if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label):
        return float(label)
    raise Problem(
        "invalid_dataset",
        f"The label {str(label)[:80]!a} is no number; the model gives one value for each row.",
    )
