"""Reports of a job's stages, joined into the report of the job."""

from collections.abc import Sequence
from functools import reduce
from typing import TypeVar

from jobs.quality import Calibration
from jobs.report import (
    DeviceMemory,
    HostMemory,
    Memory,
    Report,
    Speed,
    StageReport,
    TensorReport,
    Verification,
)

_Number = TypeVar("_Number", int, float)


def joined(reports: Sequence[Report]) -> Report:
    """Join the reports of stages.

    Args:
        reports: In order; each stage's model is what the one before it made.

    Returns:
        The report of the job: from the first one's model to the last one's artifact. Peaks are the
        largest, counts and times the sums. A tensor is as it was before the first stage that
        changed it, and its errors are those of the last one.
    """
    whole = reduce(_join, reports)
    return whole if len(reports) == 1 else whole.model_copy(update={"stages": _stages(reports)})


def _stages(reports: Sequence[Report]) -> tuple[StageReport, ...]:
    found: list[StageReport] = []
    before = 0
    for report in reports:
        found.append(
            StageReport(
                steps=tuple(before + i for i in range(1, len(report.steps) + 1)),
                artifact_bytes=report.artifact.bytes,
                measured_peak_bytes=report.memory.measured_peak_bytes,
                seconds=report.speed.total_seconds,
            )
        )
        before += len(report.steps)
    return tuple(found)


def _join(first: Report, second: Report) -> Report:
    model = first.model
    ratio = second.artifact.bytes / model.bytes
    seconds = first.speed.total_seconds + second.speed.total_seconds
    return second.model_copy(
        update={
            "model": model,
            "artifact": second.artifact.model_copy(update={"size_ratio": ratio}),
            "memory": _memory(first.memory, second.memory),
            "steps": (*first.steps, *second.steps),
            "tensors": _tensors(first.tensors, second.tensors),
            "skipped": (*first.skipped, *second.skipped),
            "shrunk": first.shrunk or second.shrunk,
            "speed": Speed(
                total_seconds=seconds, input_bytes_per_second=model.bytes / max(seconds, 1e-9)
            ),
            "verification": _verification(first.verification, second.verification),
            "calibration": _calibration(first.calibration, second.calibration),
            "training": second.training or first.training,
            "versions": {**first.versions, **second.versions},
        }
    )


def _tensors(
    first: Sequence[TensorReport], second: Sequence[TensorReport]
) -> tuple[TensorReport, ...]:
    begun = {tensor.name: tensor for tensor in first}
    for tensor in second:
        earlier = begun.get(tensor.name)
        if earlier is not None:
            shape = earlier.shape_before or tensor.shape_before
            update = {"before": earlier.before, "shape_before": shape}
            begun[tensor.name] = tensor.model_copy(update=update)
        else:
            begun[tensor.name] = tensor
    return tuple(begun.values())


def _memory(first: Memory, second: Memory) -> Memory:
    peak = max(first.measured_peak_bytes, second.measured_peak_bytes)
    budget = second.budget_bytes
    return Memory(
        idle=first.idle,
        peak=_host(first.peak, second.peak),
        device=_device(first.device, second.device),
        inspection_peak_bytes=_largest(first.inspection_peak_bytes, second.inspection_peak_bytes),
        predicted_peak_bytes=_largest(first.predicted_peak_bytes, second.predicted_peak_bytes),
        measured_peak_bytes=peak,
        added_anonymous_bytes=max(first.added_anonymous_bytes, second.added_anonymous_bytes),
        budget_bytes=budget,
        headroom_bytes=None if budget is None else budget - peak,
    )


def _host(first: HostMemory, second: HostMemory) -> HostMemory:
    return HostMemory(
        anonymous_peak_bytes=max(first.anonymous_peak_bytes, second.anonymous_peak_bytes),
        file_peak_bytes=max(first.file_peak_bytes, second.file_peak_bytes),
        resident_peak_bytes=max(first.resident_peak_bytes, second.resident_peak_bytes),
    )


def _device(first: DeviceMemory | None, second: DeviceMemory | None) -> DeviceMemory | None:
    if first is None or second is None:
        return first or second
    return max(first, second, key=lambda memory: memory.reserved_peak_bytes)


def _calibration(first: Calibration | None, second: Calibration | None) -> Calibration | None:
    if first is None or second is None:
        return first or second
    return Calibration(
        rows=max(first.rows, second.rows),
        tokens=_largest(first.tokens, second.tokens),
        blocks=first.blocks + second.blocks,
        smoothed_norms=(*first.smoothed_norms, *second.smoothed_norms),
        error_ratios=first.error_ratios | second.error_ratios,
        resident_peak_bytes=max(first.resident_peak_bytes, second.resident_peak_bytes),
        seconds=first.seconds + second.seconds,
    )


def _verification(first: Verification | None, second: Verification | None) -> Verification | None:
    if first is None or second is None:
        return None
    return Verification(
        tensors=max(first.tensors, second.tensors),
        rows=first.rows + second.rows,
        max_error_steps=_largest(first.max_error_steps, second.max_error_steps),
        seconds=first.seconds + second.seconds,
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
    )


def _largest(first: _Number | None, second: _Number | None) -> _Number | None:
    if first is None or second is None:
        return first if second is None else second
    return max(first, second)
