"""A plan's request and answer as documents."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.checkpoint import Checkpoint, Shard, assemble
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe
from jobs.safetensors_header import check_members
from planning.forecast import Forecast
from planning.memory_model import Levels
from planning.prediction import Prediction, find_overruns
from planning.program_stages import ProgramStages
from service.plan_documents import (
    PlanDocument,
    PlannedArtifact,
    PlannedMemory,
    PlannedStep,
    PlanRequest,
    SmallestBudget,
)


def checkpoint_of(asked: PlanRequest) -> Checkpoint:
    """Make the checkpoint whose bare headers a request holds.

    Args:
        asked: The request, with headers.

    Returns:
        The checkpoint; it lies nowhere.

    Raises:
        Problem: The headers do not make one checkpoint, with pointers into the request.
    """
    shards = tuple(_shard(name, header) for name, header in sorted((asked.headers or {}).items()))
    return assemble(shards, asked.config, asked.files, Path())


def document(made: Forecast, *, is_measured: bool) -> PlanDocument:
    """Write a forecast down.

    Args:
        made: The forecast.
        is_measured: Whether a worker measured its levels.

    Returns:
        The document.
    """
    plan, prediction, levels = made.plan, made.prediction, made.levels
    overruns = find_overruns(prediction, plan.recipe.budget)
    nbytes = prediction.steps[len(plan.recipe.steps) - 1].bytes_written
    return PlanDocument(
        fits=not overruns,
        overruns=tuple(problem.errors[0].pointer.rpartition("/")[2] for problem in overruns),
        smallest_budget=SmallestBudget(
            host_memory=prediction.sufficient_host_bytes,
            device_memory=prediction.least_device_bytes,
            disk=prediction.artifact_bytes,
        ),
        is_exact=made.is_exact,
        bytes_read=sum(step.bytes_read for step in prediction.steps),
        bytes_written=sum(step.bytes_written for step in prediction.steps),
        steps=tuple(PlannedStep.model_validate(asdict(step)) for step in prediction.steps),
        artifact=PlannedArtifact(
            format=plan.output_format,
            bytes=nbytes,
            total_bytes=prediction.artifact_bytes,
            size_ratio=nbytes / plan.model_bytes,
        ),
        memory=PlannedMemory(
            predicted_peak_bytes=prediction.host_peak_bytes,
            idle_bytes=levels.idle_bytes,
            inspection_bytes=None if made.is_exact else levels.inspection_bytes,
            buffer_bytes=prediction.buffers.nbytes,
            device_peak_bytes=prediction.device_peak_bytes,
            threads=prediction.buffers.threads,
            chunk_bytes=prediction.buffers.chunk_bytes,
            is_measured=is_measured,
        ),
        skipped=dict(Counter(one.reason for one in plan.selection.skipped).most_common()),
    )


def program_document(
    stages: ProgramStages, prediction: Prediction, levels: Levels, is_measured: bool
) -> PlanDocument:
    """Write down what a job on a program would do and cost.

    Args:
        stages: What it would do.
        prediction: What that would cost.
        levels: What was assumed of the processes that run it.
        is_measured: Whether a worker measured these.

    Returns:
        The document.
    """
    overruns = find_overruns(prediction, stages.recipe.budget)
    nbytes = stages.artifact_bytes
    return PlanDocument(
        fits=not overruns,
        overruns=tuple(problem.errors[0].pointer.rpartition("/")[2] for problem in overruns),
        smallest_budget=SmallestBudget(
            host_memory=prediction.sufficient_host_bytes,
            device_memory=None,
            disk=prediction.artifact_bytes,
        ),
        is_exact=True,
        bytes_read=sum(step.bytes_read for step in prediction.steps),
        bytes_written=sum(step.bytes_written for step in prediction.steps),
        steps=tuple(PlannedStep.model_validate(asdict(step)) for step in prediction.steps),
        artifact=PlannedArtifact(
            format="pt2",
            bytes=nbytes,
            total_bytes=prediction.artifact_bytes,
            size_ratio=nbytes / stages.program.file_bytes,
        ),
        memory=PlannedMemory(
            predicted_peak_bytes=prediction.host_peak_bytes,
            idle_bytes=levels.idle_bytes,
            inspection_bytes=None,
            buffer_bytes=prediction.buffers.nbytes,
            device_peak_bytes=None,
            threads=prediction.buffers.threads,
            chunk_bytes=prediction.buffers.chunk_bytes,
            is_measured=is_measured,
        ),
        skipped=dict(Counter(one.reason for one in stages.skipped).most_common()),
    )


def answers_document(
    recipe: Recipe, prediction: Prediction, levels: Levels, model_bytes: int, *, is_measured: bool
) -> PlanDocument:
    """Write down what a job would do and cost that changes no model, and only infers.

    Args:
        recipe: What it would do.
        prediction: What that would cost.
        levels: What was assumed of the processes that run it.
        model_bytes: Size of the model's files.
        is_measured: Whether a worker measured these.

    Returns:
        The document.
    """
    overruns = find_overruns(prediction, recipe.budget)
    step, nbytes = recipe.infer_step, prediction.artifact_bytes
    return PlanDocument(
        fits=not overruns,
        overruns=tuple(problem.errors[0].pointer.rpartition("/")[2] for problem in overruns),
        smallest_budget=SmallestBudget(
            host_memory=prediction.sufficient_host_bytes, device_memory=None, disk=nbytes
        ),
        is_exact=True,
        bytes_read=model_bytes,
        bytes_written=nbytes,
        steps=tuple(PlannedStep.model_validate(asdict(step)) for step in prediction.steps),
        artifact=PlannedArtifact(
            format=step.format if step else "parquet",
            bytes=nbytes,
            total_bytes=nbytes,
            size_ratio=nbytes / max(1, model_bytes),
        ),
        memory=PlannedMemory(
            predicted_peak_bytes=prediction.host_peak_bytes,
            idle_bytes=levels.idle_bytes,
            inspection_bytes=None,
            buffer_bytes=0,
            device_peak_bytes=None,
            threads=levels.threads,
            chunk_bytes=0,
            is_measured=is_measured,
        ),
        skipped={},
    )


def _shard(name: str, members: dict[str, Any]) -> Shard:
    pointer = "/headers/" + name.replace("~", "~0").replace("/", "~1")
    if not name.endswith(".safetensors") or "/" in name:
        detail = f"{name[:80]!a} is no <name>.safetensors."
        errors = [Detail(pointer, "invalid_checkpoint", detail)]
        raise Problem("invalid_checkpoint", detail, errors=errors)
    try:
        return Shard(name, check_members(members))
    except Problem as problem:
        faults = problem.errors or (Detail("", problem.code, problem.detail),)
        raise Problem(
            problem.code,
            f"{name[:80]}: {problem.detail}",
            errors=[Detail(pointer + fault.pointer, fault.code, fault.detail) for fault in faults],
        ) from problem
