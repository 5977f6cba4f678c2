"""Has the model and its artifact run, each by a runner of its own, and reads what they gave."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jobs.problems import Problem
from jobs.quality import Quality
from worker.collect import read_ran
from worker.runner import AFTER_NAME, BEFORE_NAME, Order


def orders_of(order: Order, dataset: Path | None) -> Iterator[Order]:
    """Give the orders of the two runners, the original's first.

    Args:
        order: Of the job.
        dataset: The uploaded file; None for random inputs.

    Yields:
        One that says `run_original`, and one that says `run_artifact`.
    """
    named = replace(order, dataset=str(dataset) if dataset else None)
    yield replace(named, task="run_original")
    yield replace(named, task="run_artifact")


def read_quality(work: Path, *, has_dataset: bool) -> Quality:
    """Put together what both runners left.

    Args:
        work: The job's work folder.
        has_dataset: Whether they were given a data set.

    Returns:
        What the report says.

    Raises:
        Problem: `invalid_artifact`: one of them left nothing, or something else.
    """
    before, after = read_ran(work / BEFORE_NAME), read_ran(work / AFTER_NAME)
    if after.agreement is None:
        raise Problem(
            "invalid_artifact", f"{AFTER_NAME} says nothing of how far outputs are apart."
        )
    if (before.rows, before.tokens) != (after.rows, after.tokens):
        raise Problem("invalid_artifact", "The model and its artifact were run on other rows.")
    return Quality(
        data="dataset" if has_dataset else "synthetic",
        rows=before.rows,
        tokens=before.tokens,
        before=before.running,
        after=after.running,
        agreement=after.agreement,
    )
