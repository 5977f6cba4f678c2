"""The report of a job, put together from what the runners of all its stages left."""

from collections.abc import Sequence
from pathlib import Path

from jobs.recipe import parse_recipe
from jobs.report import Report
from jobs.stage_reports import joined
from worker.collect import read_calibration, read_report, read_verification
from worker.order import Order
from worker.work_files import CALIBRATION_NAME, REPORT_NAME, VERIFICATION_NAME


def read_stages(stages: Sequence[Order]) -> Report:
    """Read what the runners of each stage left.

    Args:
        stages: The stages' orders; each was done and verified.

    Returns:
        The report of the whole job.

    Raises:
        Problem: `invalid_artifact`: a file is not there, or is something else.
    """
    return joined([_read_stage(stage) for stage in stages])


def _read_stage(stage: Order) -> Report:
    work = Path(stage.work_folder)
    report = read_report(work / REPORT_NAME)
    report = report.verified(read_verification(work / VERIFICATION_NAME))
    if parse_recipe(stage.recipe).calibrate is not None:
        report = report.calibrated(read_calibration(work / CALIBRATION_NAME))
    return report
