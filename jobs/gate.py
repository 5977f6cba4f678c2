"""Whether a finished job meets the recipe's conditions and kept its budget."""

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


def check_memory(report: Report) -> None:
    """Compare the memory that a job held with its budget.

    A worker looks at a running job some twenty times a second and stops it where it holds too
    much. What passed between two looks is in the report all the same.

    Args:
        report: What was measured.

    Raises:
        Problem: `memory_budget_exceeded`, with both figures.
    """
    device = report.memory.device
    held = {
        "host_memory": (report.memory.measured_peak_bytes, report.memory.budget_bytes),
        "device_memory": (device.reserved_peak_bytes, device.budget_bytes) if device else (0, None),
    }
    for member, (peak_bytes, budget_bytes) in held.items():
        if budget_bytes is not None and peak_bytes > budget_bytes:
            detail = (
                f"The job held {peak_bytes} bytes; budget.{member} is {budget_bytes}. Raise it."
            )
            raise Problem(
                "memory_budget_exceeded",
                detail,
                errors=[Detail(f"/budget/{member}", "memory_budget_exceeded", detail)],
                extra={"peak_bytes": peak_bytes, "budget_bytes": budget_bytes},
            )
