"""What the runners gave that ran the model and its artifact."""

from collections.abc import Sequence
from pathlib import Path

from jobs.problems import Problem
from jobs.quality import Quality
from jobs.report import Report
from worker.collect import read_ran
from worker.order import Order
from worker.work_files import AFTER_NAME, BEFORE_NAME


def with_stages(report: Report, stages: Sequence[Order]) -> Report:
    """Give a report with what running the artifact of every stage gave, where that was looked at.

    Args:
        report: The report of the job, whose own quality is read already.
        stages: The orders of its stages.

    Returns:
        It, each of its stages with what was measured after it.

    Raises:
        Problem: `invalid_artifact`: what a runner left is something else.
    """
    found = []
    for stage, told in zip(stages, report.stages, strict=False):
        path = Path(stage.work_folder) / AFTER_NAME
        ran = read_ran(path) if path.exists() else None
        update = {"after": ran.running, "agreement": ran.agreement} if ran else {}
        found.append(told.model_copy(update=update))
    return report.model_copy(update={"stages": tuple(found)})


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
