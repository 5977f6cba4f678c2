"""What the runners gave that ran the model and its artifact."""

from pathlib import Path

from jobs.problems import Problem
from jobs.quality import Quality
from worker.collect import read_ran
from worker.runner import AFTER_NAME, BEFORE_NAME


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
