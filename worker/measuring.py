"""What a runner found that measured a model, looked at before it is kept."""

from pathlib import Path

from jobs.problems import Detail, Problem
from jobs.recipe import Budget
from jobs.sensitivities import Sensitivities
from worker.collect import read_left
from worker.work_files import SENSITIVITIES_NAME


def take_measured(work: Path, budget: Budget) -> Sensitivities:
    """Read what a runner measured, and see that it kept its budget.

    Args:
        work: The job's work folder.
        budget: What the job was allowed to hold.

    Returns:
        What it found.

    Raises:
        Problem: `invalid_artifact`: there is nothing, or something else. `memory_budget_exceeded`:
            it held more for so short a time that nobody saw it.
    """
    found = read_left(work / SENSITIVITIES_NAME, Sensitivities)
    allowed, held = budget.host_memory, found.measured_peak_bytes
    if allowed is not None and held > allowed:
        code = "memory_budget_exceeded"
        detail = f"The job held {held} bytes; budget.host_memory is {allowed}. Raise it."
        extra = {"peak_bytes": held, "budget_bytes": allowed}
        raise Problem(
            code, detail, errors=[Detail("/budget/host_memory", code, detail)], extra=extra
        )
    return found
