"""What a job on a program will cost, and whether its budget allows that."""

from dataclasses import replace

from jobs.steps import ShrinkStep, method_of
from planning.memory_model import Levels
from planning.prediction import Prediction, StepPrediction
from planning.program_plan import ProgramPlan
from planning.working_set import WorkingSet

#: torch with what torch.export.load imports.
_LIBRARY_BYTES = 420_000_000
_LEAST_LIBRARY_BYTES = 300_000_000
#: Of the tensors of a program that is run or verified: what a process holds.
_SHARE_HELD = 1.3
#: As Python's objects, a graph takes so many times its JSON.
_GRAPH_FACTOR = 40
#: Of the largest tensor: as floats, rounded, and their difference.
_TENSOR_FACTOR = 8


def predict_program(plan: ProgramPlan, levels: Levels) -> Prediction:
    """Predict what a job on a program will cost.

    Args:
        plan: What it will do.
        levels: What was measured where it will run.

    Returns:
        The prediction. Bytes are exact; the host's peak is that of the process that opens the
        artifact with torch, so an estimate.
    """
    held = plan.program.facts()["tensor_bytes"]
    graph = sum(len(text) for text in plan.texts.values())
    largest = max((one.spec.nbytes for one in plan.written), default=0)
    working = _TENSOR_FACTOR * largest + _GRAPH_FACTOR * graph
    opened = _LIBRARY_BYTES + round(_SHARE_HELD * held) + _GRAPH_FACTOR * graph
    peak = max(levels.idle_bytes + working, opened)
    return Prediction(
        steps=tuple(_steps(plan, peak)),
        artifact_bytes=plan.artifact_bytes,
        host_peak_bytes=peak,
        device_peak_bytes=None,
        least_host_bytes=_LEAST_LIBRARY_BYTES + min(held, plan.artifact_bytes),
        least_device_bytes=None,
        buffers=WorkingSet(1, largest, {"tensor": working}, {}),
    )


def _steps(plan: ProgramPlan, peak: int) -> list[StepPrediction]:
    predicted = []
    targets = plan.selection.targets.values()
    for index, step in enumerate(plan.recipe.steps):
        if isinstance(step, ShrinkStep):
            changed = len(plan.shrink.shapes) if plan.shrink else 0
        elif step.op == "prune":
            changed = sum(index in target.prune_steps for target in targets)
        else:
            changed = sum(target.scheme is not None for target in targets)
        predicted.append(StepPrediction(step.op, method_of(step), changed, 0, 0, peak))
    read, written = plan.program.file_bytes, plan.artifact_bytes
    predicted[-1] = replace(predicted[-1], bytes_read=read, bytes_written=written)
    return predicted
