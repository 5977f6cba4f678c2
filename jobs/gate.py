"""Whether a finished job meets the recipe's conditions and kept its budget."""

from jobs.problems import Detail, Problem
from jobs.recipe import Gate
from jobs.report import Report

#: 0.8 - 0.7 is a little more than 0.1 in binary.
_TOLERANCE = 1e-9


def check(report: Report, gate: Gate) -> None:
    """Compare what was measured with what the recipe demands.

    Args:
        report: What was measured.
        gate: What is demanded.

    Raises:
        Problem: `gate_failed`, with every condition that is not met; the extra members hold what
            was measured next to its limit.
    """
    limits = gate.model_dump(exclude_none=True)
    measured = {name: _measured(report, name) for name in limits}
    failed = [name for name in limits if not _is_met(name, measured[name], limits[name])]
    if not failed:
        return
    details = [_detail(name, measured[name], limits[name]) for name in failed]
    raise Problem(
        "gate_failed",
        " ".join(detail.detail for detail in details),
        errors=details,
        extra={
            "measured": {_quantity(name): measured[name] for name in failed},
            "limits": {name: limits[name] for name in failed},
        },
    )


def _measured(report: Report, name: str) -> float | None:
    """Give what a condition is about; None where the report does not know."""
    if name == "max_size_ratio":
        return report.artifact.size_ratio
    quality = report.quality
    if quality is None:
        return None
    before, after, agreement = quality.before, quality.after, quality.agreement
    if name == "max_accuracy_drop":
        return _minus(before.accuracy, after.accuracy)
    if name == "max_perplexity_ratio":
        return _over(after.perplexity, before.perplexity)
    if name == "max_latency_ratio":
        return _over(after.latency_seconds.get("1"), before.latency_seconds.get("1"))
    return {
        "min_cosine": agreement.mean_cosine,
        "max_kl_divergence": agreement.kl_divergence,
        "min_top1_agreement": agreement.top1_agreement,
    }[name]


def _is_met(name: str, measured: float | None, limit: float) -> bool:
    if measured is None:
        return False
    if name.startswith("min_"):
        return measured >= limit - _TOLERANCE
    return measured <= limit + _TOLERANCE


def _detail(name: str, measured: float | None, limit: float) -> Detail:
    if measured is None:
        said = (
            f"gate.{name} cannot be judged: nothing was measured that it is about. Give "
            "evaluate.dataset with labels for accuracy, or a model whose outputs are logits."
        )
    else:
        said = f"{_quantity(name)} is {measured:.6g}; gate.{name} is {limit:g}."
    return Detail(f"/gate/{name}", name, said)


def _quantity(name: str) -> str:
    return name.partition("_")[2]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _over(first: float | None, second: float | None) -> float | None:
    return None if first is None or not second else first / second


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
