"""Puts the measurements of a training together into its report."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from engine.memory import MemoryMeter
from jobs.checkpoint import open_checkpoint
from jobs.recipe import Recipe
from jobs.report import (
    ArtifactFacts,
    DeviceMemory,
    Memory,
    ModelFacts,
    Report,
    Speed,
    StepReport,
    TensorReport,
    TensorState,
)
from jobs.safetensors_header import TensorSpec
from jobs.steps import method_of
from jobs.training import Training
from planning.loaders import loaders_of
from training.comparing import Difference, Pair


def build_folder_report(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    training: Training,
    meter: MemoryMeter,
) -> Report:
    """Put the measurements of a trained folder together.

    Args:
        model_folder: What was trained.
        artifact_folder: What came of it.
        recipe: Its finetune step, and the budget.
        training: What training gave.
        meter: Measured the host's memory since before the model was opened.

    Returns:
        The report: of each tensor that changed, its zeros before and after and by how much it did.
    """
    model, artifact = open_checkpoint(model_folder), open_checkpoint(artifact_folder)
    pair = Pair(model, artifact)
    found = {name: pair.compare(name) for name in model.tensors}
    tensors = tuple(
        tensor_report(model.tensors[name], difference)
        for name, difference in found.items()
        if difference.is_changed
    )
    sizes = [
        sum(s.header.data_start + s.header.data_bytes for s in checkpoint.shards)
        for checkpoint in (model, artifact)
    ]
    facts = model.facts()
    meter.sample()
    return Report(
        model=ModelFacts(
            format=model.format,
            architecture=facts["architecture"],
            bytes=sizes[0],
            parameters=facts["parameters"],
            parameters_by_dtype=facts["parameters_by_dtype"],
        ),
        artifact=ArtifactFacts(
            format="safetensors", bytes=sizes[1], size_ratio=sizes[1] / sizes[0]
        ),
        memory=memory_of(meter, recipe, training),
        steps=(step_report(recipe, training, sizes, len(tensors)),),
        tensors=tensors,
        skipped=(),
        loaders=loaders_of([], "safetensors", has_config=True),
        speed=Speed(
            total_seconds=training.seconds,
            input_bytes_per_second=sizes[0] / max(training.seconds, 1e-9),
        ),
        training=training,
        versions=versions(),
    )


def tensor_report(tensor: TensorSpec, found: Difference) -> TensorReport:
    """Give the row of a tensor that training changed."""
    before, after = (
        TensorState(
            dtype=tensor.dtype, bytes=tensor.nbytes, sparsity=zeros / max(1, found.elements)
        )
        for zeros in (found.zeros_before, found.zeros_after)
    )
    return TensorReport(
        name=tensor.name,
        shape=tensor.shape,
        before=before,
        after=after,
        relative_rmse=found.relative_rmse,
        max_error_steps=None,
    )


def step_report(
    recipe: Recipe, training: Training, sizes: list[int], tensors_changed: int
) -> StepReport:
    """Give the row of a finetune step."""
    return StepReport(
        op="finetune",
        method=method_of(recipe.steps[0]),
        seconds=training.seconds,
        bytes_read=sizes[0],
        bytes_written=sizes[1],
        tensors_changed=tensors_changed,
        weights_pruned=0,
    )


def memory_of(meter: MemoryMeter, recipe: Recipe, training: Training) -> Memory:
    """Give the memory of a training."""
    peak = max(meter.peak.resident_peak_bytes, training.resident_peak_bytes)
    budget = recipe.budget.host_memory
    return Memory(
        idle=meter.idle,
        peak=meter.peak.model_copy(update={"resident_peak_bytes": peak}),
        device=_device(recipe, training),
        measured_peak_bytes=peak,
        added_anonymous_bytes=max(
            0, meter.peak.anonymous_peak_bytes - meter.idle.anonymous_peak_bytes
        ),
        budget_bytes=budget,
        headroom_bytes=None if budget is None else budget - peak,
    )


def versions() -> dict[str, str]:
    """Give what a training ran with."""
    names = ("modelpress", "numpy", "transformers")
    return {
        **{name: version(name) for name in names},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _device(recipe: Recipe, training: Training) -> DeviceMemory | None:
    peak = training.device_peak_bytes
    if peak is None:
        return None
    budget = recipe.budget.device_memory
    return DeviceMemory(
        allocated_peak_bytes=torch.cuda.max_memory_allocated(),
        reserved_peak_bytes=peak,
        budget_bytes=budget,
        headroom_bytes=None if budget is None else budget - peak,
    )
