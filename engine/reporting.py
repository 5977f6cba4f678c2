"""Puts a job's measurements together into its report."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from engine.cut_reading import Kept
from engine.journal import Record
from engine.ledger import StepEntry, TensorEntry
from engine.memory import MemoryMeter
from jobs.ranges import ranges_text
from jobs.recipe import Recipe
from jobs.report import (
    ArtifactFacts,
    DeviceMemory,
    Memory,
    ModelFacts,
    Report,
    Resumed,
    Speed,
    TensorReport,
    TensorState,
)
from jobs.shrunk import Kept as KeptReport
from jobs.shrunk import Shrunk
from planning.aims import Settled
from planning.architectures import table_version
from planning.cuts import Shrinkage
from planning.layout import Placement
from planning.loaders import loaders_of
from planning.plan import Plan
from planning.prediction import Prediction


def build_report(
    settled: Settled,
    prediction: Prediction,
    counted: tuple[Sequence[StepEntry], Mapping[str, TensorEntry], Record | None],
    kept: Kept,
    memory: tuple[MemoryMeter, DeviceMemory | None, int | None],
    seconds: float,
) -> Report:
    """Put a job's measurements together.

    Args:
        settled: What was done.
        prediction: What it was to cost.
        counted: What was counted, by step and by tensor, and what of that an attempt before did.
        kept: Which heads and channels were kept, where some were left out.
        memory: What was measured of the host's memory and of the device's, and the resident peak
            of the process that looked at the model's modules.
        seconds: How long it took.

    Returns:
        The report.
    """
    steps, tensors, reached = counted
    plan = settled.plan
    has_config = plan.model.config is not None
    reports = tuple(
        _tensor(placement, tensors[placement.source.name])
        for shard in plan.shards
        for placement in shard.placements
        if placement.target is not None
    )
    # Of thousands of tensors, these are the most that the job holds.
    memory[0].sample()
    return Report(
        model=_model(plan),
        artifact=_artifact(plan),
        memory=_memory(*memory, plan.recipe, prediction),
        steps=tuple(e.report(step) for e, step in zip(steps, plan.recipe.steps, strict=True)),
        tensors=reports,
        skipped=plan.selection.skipped,
        shrunk=_shrunk(plan.shrinkage, kept) if plan.shrinkage else None,
        sensitivity=settled.sensitivity,
        loaders=loaders_of(
            list(plan.selection.targets.values()),
            plan.output_format,
            has_config=has_config,
            is_shrunk=plan.shrinkage is not None,
        ),
        speed=Speed(
            total_seconds=seconds, input_bytes_per_second=plan.model_bytes / max(seconds, 1e-9)
        ),
        resumed=Resumed(bytes_skipped=reached.bytes_read) if reached else None,
        versions=_versions(has_config=has_config, inspection=memory[2]),
    )


def _model(plan: Plan) -> ModelFacts:
    facts = plan.model.facts()
    return ModelFacts(
        format=plan.model.format,
        architecture=facts["architecture"],
        bytes=plan.model_bytes,
        parameters=facts["parameters"],
        parameters_by_dtype=facts["parameters_by_dtype"],
    )


def _artifact(plan: Plan) -> ArtifactFacts:
    nbytes = sum(shard.nbytes for shard in plan.shards)
    return ArtifactFacts(
        format=plan.output_format, bytes=nbytes, size_ratio=nbytes / plan.model_bytes
    )


def _shrunk(shrinkage: Shrinkage, kept: Kept) -> Shrunk:
    chosen = [
        KeptReport(
            name=group.name,
            unit=group.unit,
            count=group.count,
            kept=ranges_text(kept[group.name].tolist()),
        )
        for group in shrinkage.groups
    ]
    chosen += [
        KeptReport(name=path, unit="layers", count=count, kept=ranges_text(numbers))
        for path, (count, numbers) in shrinkage.layers.items()
    ]
    return Shrunk(
        kept=tuple(chosen),
        config=dict(shrinkage.edits),
        parameters=sum(tensor.elements for _, tensor in shrinkage.checkpoint.walk()),
    )


def _versions(*, has_config: bool, inspection: int | None) -> dict[str, str]:
    versions = {name: version(name) for name in ("modelpress", "numpy", "numba")}
    versions["python"] = platform.python_version()
    if has_config:
        # Who said which module is which: the table, or the model's own code.
        is_table = inspection is None
        versions["transformers"] = (
            f"{table_version()} (table)" if is_table else version("transformers")
        )
    return versions


def _memory(
    meter: MemoryMeter,
    device: DeviceMemory | None,
    inspection: int | None,
    recipe: Recipe,
    prediction: Prediction,
) -> Memory:
    budget = recipe.budget.host_memory
    idle, peak = meter.idle, meter.peak
    total = max(peak.resident_peak_bytes, idle.resident_peak_bytes + (inspection or 0))
    return Memory(
        idle=idle,
        peak=peak,
        device=None if device is None else _device_memory(device, recipe, prediction),
        inspection_peak_bytes=inspection,
        predicted_peak_bytes=prediction.host_peak_bytes,
        measured_peak_bytes=total,
        added_anonymous_bytes=max(0, peak.anonymous_peak_bytes - idle.anonymous_peak_bytes),
        budget_bytes=budget,
        headroom_bytes=None if budget is None else budget - total,
    )


def _device_memory(measured: DeviceMemory, recipe: Recipe, prediction: Prediction) -> DeviceMemory:
    budget = recipe.budget.device_memory
    return measured.model_copy(
        update={
            "predicted_peak_bytes": prediction.device_peak_bytes,
            "budget_bytes": budget,
            "headroom_bytes": None if budget is None else budget - measured.reserved_peak_bytes,
        }
    )


def _tensor(placement: Placement, entry: TensorEntry) -> TensorReport:
    source, target = placement.source, placement.target
    is_quantized = target is not None and target.scheme is not None
    whole = target.cut.source if target is not None and target.cut is not None else None
    elements = max(1, source.elements)
    return TensorReport(
        name=source.name,
        shape=source.shape,
        shape_before=whole.shape if whole else None,
        before=TensorState(
            dtype=source.dtype,
            bytes=(whole or source).nbytes,
            sparsity=entry.zeros_before / elements,
        ),
        after=TensorState(
            dtype=placement.outputs["weight"].dtype,
            bytes=sum(output.nbytes for output in placement.outputs.values()),
            sparsity=entry.zeros_after / elements,
        ),
        relative_rmse=entry.relative_rmse,
        max_error_steps=entry.max_error_steps if is_quantized else None,
    )
