"""What a planned job will cost, step by step, and whether its budget allows that."""

from dataclasses import dataclass

from jobs.problems import Detail, Problem
from jobs.recipe import Budget, PruneStep
from planning.extents import extent_of
from planning.matrices import pruned_count
from planning.memory_model import Levels, MemoryModel
from planning.plan import Plan
from planning.selection import Target
from planning.working_set import WorkingSet


@dataclass(frozen=True)
class StepPrediction:
    """What one step of the recipe will cost.

    Attributes:
        op: The step's op.
        method: Its method or scheme.
        tensors_changed: How many tensors it changes.
        bytes_read: Read for it alone; the pass that writes the artifact counts for the last step.
        bytes_written: Bytes of the artifact's safetensors files, for the last step.
        host_peak_bytes: The most that the job's processes hold together during its passes.
    """

    op: str
    method: str
    tensors_changed: int
    bytes_read: int
    bytes_written: int
    host_peak_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What a job will cost.

    Attributes:
        steps: The same for every step.
        artifact_bytes: Size of all files of the artifact but its manifest.
        host_peak_bytes: The most that the job's processes will hold together.
        least_host_bytes: The smallest budget.host_memory in which it can run.
        buffers: The threads and chunks that its budget allows, and what they hold.
    """

    steps: tuple[StepPrediction, ...]
    artifact_bytes: int
    host_peak_bytes: int
    least_host_bytes: int
    buffers: WorkingSet


def predict(plan: Plan, levels: Levels, *, is_inspected: bool) -> Prediction:
    """Predict what a job will cost.

    Args:
        plan: What it will do.
        levels: What was measured where it will run.
        is_inspected: Whether another process is asked about the model first.

    Returns:
        The prediction. Bytes are exact; the host's peak is near what the report will say.
    """
    targets = plan.selection.targets.values()
    model = MemoryModel.of(
        targets,
        plan.recipe,
        levels,
        tensors=len(plan.checkpoint.tensors),
        is_inspected=is_inspected,
    )
    buffers = model.fit(plan.recipe.budget.host_memory)
    peak = model.peak_bytes(buffers)
    steps = range(len(plan.recipe.steps))
    return Prediction(
        steps=tuple(_predict_step(plan, i, buffers.chunk_bytes, peak) for i in steps),
        artifact_bytes=plan.artifact_bytes,
        host_peak_bytes=peak,
        least_host_bytes=model.least_bytes,
        buffers=buffers,
    )


def find_overruns(prediction: Prediction, budget: Budget) -> list[Problem]:
    """Say which limits a job would pass.

    Args:
        prediction: What it will cost.
        budget: What it may cost.

    Returns:
        A problem for each limit, with the smallest budget that would do; empty where it fits.
    """
    needs = (
        ("memory_budget_exceeded", "host_memory", prediction.least_host_bytes, "hold"),
        ("disk_budget_exceeded", "disk", prediction.artifact_bytes, "write"),
    )
    found = []
    for code, member, needed, verb in needs:
        allowed = getattr(budget, member)
        if allowed is not None and needed > allowed:
            detail = (
                f"The job would {verb} {needed} bytes at least; budget.{member} is {allowed}. "
                f"The smallest that fits is {needed}."
            )
            extra = {"predicted_bytes": needed, "budget_bytes": allowed, "smallest_bytes": needed}
            errors = [Detail(f"/budget/{member}", code, detail)]
            found.append(Problem(code, detail, errors=errors, extra=extra))
    return found


def _predict_step(plan: Plan, index: int, chunk_bytes: int, peak: int) -> StepPrediction:
    step, is_last = plan.recipe.steps[index], index == len(plan.recipe.steps) - 1
    targets = plan.selection.targets.values()
    if isinstance(step, PruneStep):
        changed = [target for target in targets if index in target.prune_steps]
        measured = _bytes_measured(step, changed, chunk_bytes)
    else:
        changed, measured = [target for target in targets if target.scheme is not None], 0
    return StepPrediction(
        op=step.op,
        method=step.method if isinstance(step, PruneStep) else step.scheme,
        tensors_changed=len(changed),
        bytes_read=measured + sum(s.source.header.data_bytes for s in plan.shards if is_last),
        bytes_written=sum(shard.nbytes for shard in plan.shards if is_last),
        host_peak_bytes=peak,
    )


def _bytes_measured(step: PruneStep, targets: list[Target], chunk_bytes: int) -> int:
    """Count what is read to find out which weights are the smallest."""
    if step.structure != "unstructured" or step.method == "random":
        return 0
    sparsity = step.sparsity or 0.0
    if step.scope == "global":
        dtypes = {target.matrix.tensor.dtype for target in targets}
        looks = 2 if "F32" in dtypes or len(dtypes) > 1 else 1
        return looks * sum(target.matrix.tensor.nbytes for target in targets)
    read = 0
    for target in targets:
        looks = 2 if target.itemsize == 4 else 1
        is_row = step.scope == "row"
        elements = target.matrix.inputs if is_row else target.matrix.tensor.elements
        is_known = is_row and extent_of(target, chunk_bytes).shape == "rows"
        if pruned_count(sparsity, elements) and not is_known:
            read += looks * target.matrix.tensor.nbytes
    return read
