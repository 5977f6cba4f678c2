"""What a job on a program will cost, and whether its budget allows that."""

from dataclasses import replace

from jobs.finetuning import FinetuneStep
from jobs.steps import PruneStep, ShrinkStep, method_of
from planning.memory_model import Levels
from planning.prediction import Prediction, StepPrediction, joined
from planning.program_plan import ProgramPlan
from planning.program_stages import ProgramStages
from planning.program_training import find_trained
from planning.program_training_memory import activation_bytes, held_bytes, largest_made_bytes
from planning.training import training_budget
from planning.walks import MORE_LIBRARY_BYTES
from planning.working_set import WorkingSet

#: torch with what torch.export.load imports, in a runner: 424 MB seen with a small program.
_LIBRARY_BYTES = 425_000_000
_LEAST_LIBRARY_BYTES = 300_000_000
#: Outputs, kernels' own buffers and what the data set's reader takes, where it is run.
_RUNNING_BYTES = 50_000_000
#: Of the tensors of a program that is opened: what a process holds, checks included.
_SHARE_HELD = 1.3
#: As Python's objects, a graph takes so many times its JSON.
_GRAPH_FACTOR = 40
#: Of the largest tensor: as floats, their magnitudes, rounded, and the difference.
_TENSOR_FACTOR = 6
#: Of all weights that are compared with one another.
_GLOBAL_FACTOR = 4
#: An int8 weight while it is used: cast, and multiplied with its scales.
_FLOATS_AT_ONCE = 2
_FLOAT_BYTES = 4
#: While a weight's inputs are looked at: these, their squares, what is made of them, and what the
#: program itself keeps for later.
_VALUES_AT_ONCE = 4
#: What the gradients of activations take on top of these, and buffers of kernels.
_BACKWARD_FACTOR = 1.5


def predict_stages(stages: ProgramStages, levels: Levels) -> Prediction:
    """Predict what a job on a program will cost, whatever its stages.

    Args:
        stages: What each of them will do.
        levels: What was measured where it will run.

    Returns:
        The prediction: of all steps; memory is that of the stage that needs most.
    """
    predicted: list[Prediction] = []
    rounded = _rounded_again_bytes(stages)
    nbytes = stages.program.file_bytes
    for plan in stages.plans:
        one = predict_program(plan, levels, rounded)
        last = replace(one.steps[-1], bytes_read=nbytes)
        predicted.append(replace(one, steps=(*one.steps[:-1], last)))
        nbytes = one.artifact_bytes
    return joined(predicted)


def predict_program(plan: ProgramPlan, levels: Levels, rounded_bytes: int = 0) -> Prediction:
    """Predict what a job on a program will cost.

    Args:
        plan: What it will do.
        levels: What was measured where it will run.
        rounded_bytes: Of weights that training holds once more, rounded.

    Returns:
        The prediction. Bytes are exact; the host's peak is that of the process that opens or runs
        the program with torch, or that of numpy over its largest tensor, so an estimate.
    """
    training = plan.recipe.finetune_step
    if training is not None:
        return _predict_training(plan, training, rounded_bytes)
    tensors = plan.program.tensors.values()
    held = sum(tensor.spec.nbytes for tensor in tensors)
    graph = _GRAPH_FACTOR * sum(len(text) for text in plan.texts.values())
    largest = max((tensor.spec.nbytes for tensor in tensors), default=0)
    working = _TENSOR_FACTOR * largest + _GLOBAL_FACTOR * _compared_bytes(plan) + graph
    opened = _LIBRARY_BYTES + round(_SHARE_HELD * held) + graph
    if plan.recipe.evaluate is not None:
        opened += _RUNNING_BYTES + _FLOATS_AT_ONCE * _largest_rounded_bytes(plan)
    wanted = plan.recipe.calibrate
    if wanted is not None:
        made = largest_made_bytes(plan.program, wanted.batch_size)
        calibrating = _RUNNING_BYTES + _VALUES_AT_ONCE * made
        opened = max(opened, _LIBRARY_BYTES + round(_SHARE_HELD * held) + graph + calibrating)
    peak = max(levels.idle_bytes + working, opened)
    return Prediction(
        steps=tuple(_steps(plan, peak)),
        artifact_bytes=plan.artifact_bytes,
        host_peak_bytes=peak,
        device_peak_bytes=None,
        least_host_bytes=_LEAST_LIBRARY_BYTES + held,
        sufficient_host_bytes=peak + MORE_LIBRARY_BYTES,
        least_device_bytes=None,
        buffers=WorkingSet(1, largest, {"tensor": working}, {}),
    )


def _predict_training(plan: ProgramPlan, step: FinetuneStep, rounded_bytes: int) -> Prediction:
    """Predict a stage that trains: about, as trying tells how many rows fit into the budget."""
    wanted = step.micro_batch_size
    rows = step.batch_size if wanted == "auto" else wanted
    graph = _GRAPH_FACTOR * sum(len(text) for text in plan.texts.values())
    held = held_bytes(plan.program, step, step.optimizer)
    passing = round(_BACKWARD_FACTOR * activation_bytes(plan.program, rows))
    one_row = round(_BACKWARD_FACTOR * activation_bytes(plan.program, 1))
    opened = _LIBRARY_BYTES + _RUNNING_BYTES + graph + rounded_bytes
    peak = opened + held + passing
    saves = step.optimizer == "adamw" and "adamw8bit" in step.savings
    least = held_bytes(plan.program, step, "adamw8bit") if saves else held
    budget = plan.recipe.budget.host_memory
    return Prediction(
        steps=tuple(_steps(plan, peak)),
        artifact_bytes=plan.artifact_bytes,
        host_peak_bytes=peak if budget is None else min(peak, budget),
        device_peak_bytes=None,
        least_host_bytes=_LEAST_LIBRARY_BYTES + least,
        sufficient_host_bytes=training_budget(opened + MORE_LIBRARY_BYTES + least + one_row),
        least_device_bytes=None,
        buffers=WorkingSet(1, passing, {"activations": passing}, {}),
    )


def _rounded_again_bytes(stages: ProgramStages) -> int:
    """Give what weights take once more in float32 where they are trained for their rounding."""
    step = stages.recipe.finetune_step
    if step is None or not step.quantize_aware:
        return 0
    targets = stages.plans[-1].selection.targets.values()
    return _FLOAT_BYTES * sum(t.matrix.tensor.elements for t in targets if t.scheme is not None)


def _compared_bytes(plan: ProgramPlan) -> int:
    """Give the bytes of the weights that a step with scope global compares; 0 without one."""
    steps = plan.recipe.steps
    wanted = {i for i, s in enumerate(steps) if isinstance(s, PruneStep) and s.scope == "global"}
    targets = plan.selection.targets.values()
    return sum(t.matrix.tensor.nbytes for t in targets if not wanted.isdisjoint(t.prune_steps))


def _largest_rounded_bytes(plan: ProgramPlan) -> int:
    targets = plan.selection.targets.values()
    return max((t.matrix.tensor.nbytes for t in targets if t.scheme is not None), default=0)


def _steps(plan: ProgramPlan, peak: int) -> list[StepPrediction]:
    predicted = []
    targets = plan.selection.targets.values()
    for index, step in enumerate(plan.recipe.steps):
        if isinstance(step, ShrinkStep):
            changed = len(plan.shrink.shapes) if plan.shrink else 0
        elif isinstance(step, FinetuneStep):
            changed = sum(len(names) for names in find_trained(plan.program, step).values())
        elif step.op == "prune":
            changed = sum(index in target.prune_steps for target in targets)
        else:
            changed = sum(target.scheme is not None for target in targets)
        predicted.append(StepPrediction(step.op, method_of(step), changed, 0, 0, peak))
    read, written = plan.program.file_bytes, plan.artifact_bytes
    predicted[-1] = replace(predicted[-1], bytes_read=read, bytes_written=written)
    return predicted
