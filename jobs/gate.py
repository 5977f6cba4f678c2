"""Whether a finished job meets the recipe's conditions."""

from jobs.problems import Detail, Problem
from jobs.recipe import Gate
from jobs.report import Report


def check(report: Report, gate: Gate) -> None:
    """Compare what was measured with what the recipe demands.

    Args:
        report: What was measured.
        gate: What is demanded.

    Raises:
        Problem: `gate_failed`; the extra members hold what was measured next to its limit.
    """
    limit = gate.max_size_ratio
    measured = report.artifact.size_ratio
    if limit is None or measured <= limit:
        return
    detail = (
        f"The artifact has {report.artifact.bytes} bytes, {measured:.4f} of the model's "
        f"{report.model.bytes}; gate.max_size_ratio is {limit}."
    )
    raise Problem(
        "gate_failed",
        detail,
        errors=[Detail("/gate/max_size_ratio", "max_size_ratio", detail)],
        extra={"measured": {"size_ratio": measured}, "limits": {"max_size_ratio": limit}},
    )
