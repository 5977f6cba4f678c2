"""Puts the measurements of a job on a program together into its report."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from engine.ledger import StepEntry, TensorEntry
from engine.memory import MemoryMeter
from jobs.program import FORMAT
from jobs.report import (
    ArtifactFacts,
    Loader,
    Memory,
    ModelFacts,
    Report,
    Speed,
    TensorReport,
    TensorState,
)
from planning.prediction import Prediction
from planning.program_plan import ProgramPlan, Written

_NOTE = (
    "torch.export.load('model.pt2') opens it with nothing but torch; weights are int8 in the file "
    "and in memory, and become floats while they are used."
)
DENSE_NOTE = "torch.export.load('model.pt2') opens it with nothing but torch."


def build_report(
    plan: ProgramPlan,
    prediction: Prediction,
    counted: tuple[Sequence[StepEntry], Mapping[str, TensorEntry]],
    meter: MemoryMeter,
    seconds: float,
) -> Report:
    """Put a job's measurements together.

    Args:
        plan: What was done.
        prediction: What it was to cost.
        counted: What was counted, by step and by tensor.
        meter: What was measured of the host's memory.
        seconds: How long it took.

    Returns:
        The report.
    """
    entries, tensors = counted
    facts = plan.program.facts()
    model_bytes, artifact_bytes = plan.program.file_bytes, entries[-1].bytes_written
    is_quantized = any(target.scheme for target in plan.selection.targets.values())
    return Report(
        model=ModelFacts(
            format=FORMAT,
            architecture=None,
            bytes=model_bytes,
            parameters=facts["parameters"],
            parameters_by_dtype=facts["parameters_by_dtype"],
        ),
        artifact=ArtifactFacts(
            format="pt2", bytes=artifact_bytes, size_ratio=artifact_bytes / model_bytes
        ),
        memory=_memory(plan, prediction, meter),
        steps=tuple(e.report(step) for e, step in zip(entries, plan.recipe.steps, strict=True)),
        tensors=_tensors(plan, tensors),
        skipped=plan.skipped,
        loaders={"torch.export.load": Loader(ok=True, note=_NOTE if is_quantized else DENSE_NOTE)},
        speed=Speed(total_seconds=seconds, input_bytes_per_second=model_bytes / max(seconds, 1e-9)),
        versions={
            **{name: version(name) for name in ("modelpress", "numpy")},
            "python": platform.python_version(),
        },
    )


def _memory(plan: ProgramPlan, prediction: Prediction, meter: MemoryMeter) -> Memory:
    budget = plan.recipe.budget.host_memory
    idle, peak = meter.idle, meter.peak
    return Memory(
        idle=idle,
        peak=peak,
        device=None,
        predicted_peak_bytes=prediction.host_peak_bytes,
        measured_peak_bytes=peak.resident_peak_bytes,
        added_anonymous_bytes=max(0, peak.anonymous_peak_bytes - idle.anonymous_peak_bytes),
        budget_bytes=budget,
        headroom_bytes=None if budget is None else budget - peak.resident_peak_bytes,
    )


def _tensors(plan: ProgramPlan, tensors: Mapping[str, TensorEntry]) -> tuple[TensorReport, ...]:
    written: dict[str, list[Written]] = {}
    for one in plan.written:
        written.setdefault(one.source, []).append(one)
    return tuple(
        _tensor(plan, name, written[name], tensors[name]) for name in written if name in tensors
    )


def _tensor(
    plan: ProgramPlan, name: str, written: list[Written], entry: TensorEntry
) -> TensorReport:
    source, after = plan.program.tensors[name].spec, written[0].spec
    return TensorReport(
        name=name,
        shape=after.shape,
        before=TensorState(
            dtype=source.dtype,
            bytes=source.nbytes,
            sparsity=entry.zeros_before / max(1, source.elements),
        ),
        after=TensorState(
            dtype=after.dtype,
            bytes=sum(one.spec.nbytes for one in written),
            sparsity=entry.zeros_after / max(1, after.elements),
        ),
        shape_before=source.shape if after.shape != source.shape else None,
        relative_rmse=entry.relative_rmse,
        max_error_steps=entry.max_error_steps if len(written) > 1 else None,
    )
