"""From a checkpoint's headers and a recipe to what the job would cost."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.checkpoint import Checkpoint, Shard, assemble
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe
from jobs.safetensors_header import check_members
from planning.architectures import guess_kinds, known_kinds
from planning.memory_model import Levels
from planning.plan import Plan, make_plan
from planning.prediction import Prediction, find_overruns, predict
from service.plan_documents import (
    PlanDocument,
    PlannedArtifact,
    PlannedMemory,
    PlannedStep,
    PlanRequest,
    SmallestBudget,
)


@dataclass(frozen=True)
class Forecast:
    """What a job would do and cost.

    Attributes:
        plan: What it would do.
        prediction: What that would cost.
        levels: What was assumed of the processes that run it.
        is_exact: Whether it is certain which module is which.
    """

    plan: Plan
    prediction: Prediction
    levels: Levels
    is_exact: bool


def forecast(checkpoint: Checkpoint, recipe: Recipe, levels: Levels) -> Forecast:
    """Say what a job would do and cost, without running anything.

    Args:
        checkpoint: The model; nothing but its headers and config is looked at.
        recipe: What to do to it.
        levels: What is known of the processes that run jobs.

    Returns:
        The forecast. It is exact but for models that only their own code could tell about.

    Raises:
        Problem: As `make_plan`.
    """
    kinds = known_kinds(checkpoint)
    is_exact = kinds is not None or checkpoint.config is None
    plan = make_plan(checkpoint, kinds if is_exact else guess_kinds(checkpoint), recipe)
    assumed = replace(levels, inspection_bytes=0) if is_exact else levels
    return Forecast(plan, predict(plan, assumed), assumed, is_exact)


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
    nbytes = sum(shard.nbytes for shard in plan.shards)
    headers = [shard.source.header for shard in plan.shards]
    return PlanDocument(
        fits=not overruns,
        overruns=tuple(problem.errors[0].pointer.rpartition("/")[2] for problem in overruns),
        smallest_budget=SmallestBudget(
            host_memory=prediction.least_host_bytes, disk=prediction.artifact_bytes
        ),
        is_exact=made.is_exact,
        bytes_read=sum(step.bytes_read for step in prediction.steps),
        bytes_written=sum(step.bytes_written for step in prediction.steps),
        steps=tuple(PlannedStep.model_validate(asdict(step)) for step in prediction.steps),
        artifact=PlannedArtifact(
            format=plan.output_format,
            bytes=nbytes,
            total_bytes=prediction.artifact_bytes,
            size_ratio=nbytes / sum(header.data_start + header.data_bytes for header in headers),
        ),
        memory=PlannedMemory(
            predicted_peak_bytes=prediction.host_peak_bytes,
            idle_bytes=levels.idle_bytes,
            inspection_bytes=None if made.is_exact else levels.inspection_bytes,
            buffer_bytes=prediction.buffers.nbytes,
            threads=prediction.buffers.threads,
            chunk_bytes=prediction.buffers.chunk_bytes,
            is_measured=is_measured,
        ),
        skipped=dict(Counter(one.reason for one in plan.selection.skipped).most_common()),
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
