"""What a planned job will cost, step by step, and whether its budget allows that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.finetuning import FinetuneStep
from jobs.problems import Detail, Problem
from jobs.recipe import Budget
from jobs.steps import PruneStep, QuantizeStep, method_of
from planning.aims import predicted_bytes
from planning.memory_model import Levels, MemoryModel, TensorCounts
from planning.plan import Plan
from planning.running import least_running_bytes, running_bytes, sufficient_running_bytes
from planning.traffic import bytes_read
from planning.training import trained_tensors
from planning.working_set import CHUNK_BYTES, WorkingSet


@dataclass(frozen=True)
class StepPrediction:
    """What one step of the recipe will cost.

    Attributes:
        op: The step's op.
        method: Its method or scheme.
        tensors_changed: How many tensors it changes.
        bytes_read: Read for it alone; the pass that writes the artifact counts for the last step.
        bytes_written: Bytes of the artifact's safetensors files, for the last step that changes
            the model; of answers, as far as known, for an infer step.
        host_peak_bytes: The most that the job's processes hold together during its passes.
        rows: How many rows of a data set it runs; None where it runs none, or nobody knows.
    """

    op: str
    method: str
    tensors_changed: int
    bytes_read: int
    bytes_written: int
    host_peak_bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What a job will cost.

    Attributes:
        steps: The same for every step.
        artifact_bytes: Size of all files of the artifact but its manifest: target_bytes, where the
            recipe has it, and the least where max_relative_rmse alone decides.
        host_peak_bytes: The most that the job's processes will hold together; about, where the
            recipe evaluates.
        device_peak_bytes: The most that will be reserved on the device; None where there is none.
        least_host_bytes: Less is certainly too little of budget.host_memory.
        sufficient_host_bytes: The smallest budget.host_memory in which it runs: the same where that
            is known, and an estimate, which is rather too large, where a model is run.
        least_device_bytes: The smallest budget.device_memory; None where there is no device.
        buffers: The threads and chunks that its budget allows, and what they hold.
    """

    steps: tuple[StepPrediction, ...]
    artifact_bytes: int
    host_peak_bytes: int
    device_peak_bytes: int | None
    least_host_bytes: int
    sufficient_host_bytes: int
    least_device_bytes: int | None
    buffers: WorkingSet


def predict(plan: Plan, levels: Levels, chunk_bytes: int = CHUNK_BYTES) -> Prediction:
    """Predict what a job will cost.

    Args:
        plan: What it will do.
        levels: What was measured where it will run.
        chunk_bytes: How much of a tensor a thread may have in memory, unless the budget wants less.

    Returns:
        The prediction. Bytes are exact, unless what stays float is found out on the way: then
        those read are the most, and of those written only the artifact's are certain. The host's
        peak is near what the report will say.
    """
    targets = list(plan.selection.targets.values())
    is_aimed = plan.recipe.aimed_step is not None
    pruned = [target for target in targets if target.prune_steps and is_aimed]
    model = MemoryModel.of(
        [*targets, *(target.as_float(plan.recipe) for target in pruned)],
        plan.recipe,
        levels,
        tensors=TensorCounts(
            read=len(plan.checkpoint.tensors),
            written=sum(len(shard.names) for shard in plan.shards),
            changed=len(targets),
            tried=sum(target.scheme is not None for target in targets) if is_aimed else 0,
            chosen_from=plan.shrinkage.units if plan.shrinkage else 0,
        ),
        chunk_bytes=chunk_bytes,
    )
    buffers = model.fit(plan.recipe.budget)
    peak = held = model.peak_bytes(buffers)
    least = model.least_bytes
    held = max(held, running_bytes(plan.model, plan.recipe, targets))
    sufficient = max(least, sufficient_running_bytes(plan.model, plan.recipe, targets))
    least = max(least, least_running_bytes(plan.model, plan.recipe))
    measured = bytes_read(targets, plan.recipe, buffers.chunk_bytes)
    if is_aimed:
        measured = [2 * nbytes for nbytes in measured]
        measured[-1] += sum(target.matrix.tensor.nbytes for target in targets)
    if plan.shrinkage is not None:
        measured[0] += plan.shrinkage.scored_bytes
    return Prediction(
        steps=tuple(_predict_step(plan, i, n, peak) for i, n in enumerate(measured)),
        artifact_bytes=predicted_bytes(plan),
        host_peak_bytes=held,
        device_peak_bytes=model.device_bytes(buffers),
        least_host_bytes=least,
        sufficient_host_bytes=max(least, sufficient),
        least_device_bytes=model.least_device_bytes,
        buffers=buffers,
    )


def joined(predicted: Sequence[Prediction]) -> Prediction:
    """Join the predictions of a recipe's stages.

    Args:
        predicted: In order; each stage's model is what the one before it makes.

    Returns:
        All of their steps, the last one's artifact, and the memory of the stage that needs most.
    """
    largest = max(predicted, key=lambda one: one.host_peak_bytes)
    on_devices = [one.device_peak_bytes for one in predicted if one.device_peak_bytes is not None]
    least = [one.least_device_bytes for one in predicted if one.least_device_bytes is not None]
    return replace(
        largest,
        steps=tuple(step for one in predicted for step in one.steps),
        artifact_bytes=predicted[-1].artifact_bytes,
        device_peak_bytes=max(on_devices, default=None),
        least_host_bytes=max(one.least_host_bytes for one in predicted),
        sufficient_host_bytes=max(one.sufficient_host_bytes for one in predicted),
        least_device_bytes=max(least, default=None),
    )


def find_overruns(prediction: Prediction, budget: Budget, pointer: str = "") -> list[Problem]:
    """Say which limits a job would pass.

    Args:
        prediction: What it will cost.
        budget: What it may cost.
        pointer: Where the recipe stands in the request.

    Returns:
        A problem for each limit, with the smallest budget that would do; empty where it fits.
    """
    host, enough = prediction.least_host_bytes, prediction.sufficient_host_bytes
    device, disk = prediction.least_device_bytes, prediction.artifact_bytes
    needs = (
        ("memory_budget_exceeded", "host_memory", host, enough, "hold"),
        ("memory_budget_exceeded", "device_memory", device, device, "reserve"),
        ("disk_budget_exceeded", "disk", disk, disk, "write"),
    )
    found = []
    for code, member, needed, smallest, verb in needs:
        allowed = getattr(budget, member)
        if None not in (allowed, needed) and needed > allowed:
            about = "" if smallest == needed else "about "
            detail = (
                f"The job would {verb} {needed} bytes at least; budget.{member} is {allowed}. "
                f"The smallest that fits is {about}{smallest}."
            )
            extra = {"predicted_bytes": needed, "budget_bytes": allowed, "smallest_bytes": smallest}
            errors = [Detail(f"{pointer}/budget/{member}", code, detail)]
            found.append(Problem(code, detail, errors=errors, extra=extra))
    return found


def refuse_overruns(prediction: Prediction, budget: Budget, pointer: str = "") -> None:
    """Refuse a job that would pass its budget.

    Args:
        prediction: What it will cost.
        budget: What it may cost.
        pointer: Where the recipe stands in the request.

    Raises:
        Problem: `memory_budget_exceeded` or `disk_budget_exceeded`, as of `find_overruns`.
    """
    for problem in find_overruns(prediction, budget, pointer):
        raise problem


def _predict_step(plan: Plan, index: int, bytes_measured: int, peak: int) -> StepPrediction:
    step, is_last = plan.recipe.steps[index], index == len(plan.recipe.steps) - 1
    targets = plan.selection.targets.values()
    if isinstance(step, PruneStep):
        changed = sum(index in target.prune_steps for target in targets)
    elif isinstance(step, QuantizeStep):
        changed = sum(target.scheme is not None for target in targets)
    elif isinstance(step, FinetuneStep):
        changed = trained_tensors(plan.checkpoint, step)
    else:
        changed = sum(target.cut is not None for target in targets)
    written = plan.shards if is_last else ()
    kept_bytes = predicted_bytes(plan) - plan.artifact_bytes if is_last else 0
    return StepPrediction(
        op=step.op,
        method=method_of(step),
        tensors_changed=changed,
        bytes_read=bytes_measured + sum(shard.source.header.data_bytes for shard in written),
        bytes_written=sum(shard.nbytes for shard in written) + kept_bytes,
        host_peak_bytes=peak,
    )
