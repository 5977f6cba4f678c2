"""Whether a model can be run, and what it takes: an estimate, as only its own code knows more."""

from collections.abc import Iterable

from jobs.checkpoint import Checkpoint
from jobs.problems import Detail, Problem
from jobs.recipe import Calibrate, Recipe
from planning.selection import Target
from planning.training import (
    least_training_bytes,
    sufficient_training_bytes,
    training_budget,
    training_bytes,
)
from planning.walks import (
    LEAST_LIBRARY_BYTES,
    LIBRARY_BYTES,
    MORE_LIBRARY_BYTES,
    SHARE_ON_TOP,
    backward_bytes,
    is_walked,
    largest_block_bytes,
    walk_of,
    weight_bytes,
    whole_bytes,
    width_of,
)

_ACTIVATION_BYTES = 4
#: Matrices as large as the sums themselves that are held while one is inverted.
_INVERSES = 3


def refuse_unrunnable(recipe: Recipe, pointer: str, *, has_config: bool) -> None:
    """Refuse to evaluate, calibrate or train what transformers does not open.

    Args:
        recipe: What is to be done.
        pointer: Where the recipe stands in the request.
        has_config: Whether the model is a transformers folder.

    Raises:
        Problem: `evaluation_unsupported`.
    """
    if recipe.runs_model and not has_config:
        section, place = _running_section(recipe)
        raise _unsupported(
            f"{pointer}/{place}",
            f"{section} runs transformers folders, and the model has no config.json. Upload the "
            f"folder with it, or leave {section} out.",
        )
    compression = recipe.compression
    if recipe.infer_step is None or compression is None:
        return
    if recipe.output.format == "safetensors" and compression.rounding is not None:
        raise _unsupported(
            f"{pointer}/output/format",
            "transformers does not open int8 in plain safetensors, so the artifact cannot be run "
            "by infer. Leave output.format or infer out.",
        )


def refuse_unmeasured(checkpoint: Checkpoint, recipe: Recipe, pointer: str) -> None:
    """Refuse a gate on latency where no forward has all of the model.

    Args:
        checkpoint: The model.
        recipe: What is to be done.
        pointer: Where the recipe stands in the request.

    Raises:
        Problem: `evaluation_unsupported`.
    """
    if recipe.gate.max_latency_ratio is not None and is_walked(checkpoint, recipe):
        needed = whole_bytes(checkpoint)
        raise _unsupported(
            f"{pointer}/gate/max_latency_ratio",
            "The model is run block by block, which tells no latency. Leave the condition out, or "
            f"have transformers run it whole: about {needed} bytes of budget.host_memory, and an "
            "artifact in compressed-tensors.",
        )


def _running_section(recipe: Recipe) -> tuple[str, str]:
    """Give what of a recipe runs the model first, and where it stands."""
    for i, step in enumerate(recipe.steps):
        if step.op == "finetune" or (step.op == "infer" and recipe.compression is None):
            return step.op, f"steps/{i}"
    if recipe.calibrate is None and recipe.evaluate is None:
        return "infer", f"steps/{len(recipe.steps) - 1}"
    section = "calibrate" if recipe.calibrate else "evaluate"
    return section, section


def least_running_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Give what the processes that run a model hold at least: the libraries, and a block.

    Args:
        checkpoint: The model; its artifact is float again when it is run.
        recipe: What is to be done. A gate on latency needs all of the model.

    Returns:
        Bytes of resident memory; 0 where the model is not run.
    """
    held = [least_evaluating_bytes(checkpoint, recipe)]
    if recipe.calibrate is not None:
        # Gradients go through all of the model.
        weights = weight_bytes if _has_gradients(recipe) else largest_block_bytes
        held.append(LEAST_LIBRARY_BYTES + weights(checkpoint))
    if recipe.finetune_step is not None:
        trained = least_training_bytes(checkpoint, recipe.finetune_step)
        held.append(LEAST_LIBRARY_BYTES + trained)
    return max(held)


def least_evaluating_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Give what evaluating a model holds at least; 0 where the recipe does not."""
    if recipe.evaluate is None:
        return 0
    whole = LEAST_LIBRARY_BYTES + weight_bytes(checkpoint)
    walk = walk_of(checkpoint, recipe, recipe.evaluate).least_bytes
    # What has no blocks is in memory as a whole either way.
    return whole if recipe.gate.max_latency_ratio is not None else min(walk, whole)


def sufficient_running_bytes(
    checkpoint: Checkpoint, recipe: Recipe, targets: Iterable[Target]
) -> int:
    """Give about the smallest budget in which the processes that run a model have room.

    Args:
        checkpoint: The model.
        recipe: What is to be done.
        targets: What the job changes.

    Returns:
        Bytes, rather too many; 0 where the model is not run.
    """
    held = [sufficient_evaluating_bytes(checkpoint, recipe)]
    if recipe.calibrate is not None:
        known = _calibrating_bytes(checkpoint, recipe, recipe.calibrate, list(targets))
        held.append(known + MORE_LIBRARY_BYTES)
    if recipe.finetune_step is not None:
        trained = sufficient_training_bytes(checkpoint, recipe.finetune_step)
        held.append(training_budget(LIBRARY_BYTES + MORE_LIBRARY_BYTES + trained))
    return max(held)


def sufficient_evaluating_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Give about the smallest budget for evaluating a model; 0 where the recipe does not."""
    if recipe.evaluate is None:
        return 0
    whole = whole_bytes(checkpoint) + MORE_LIBRARY_BYTES
    if recipe.gate.max_latency_ratio is not None or not largest_block_bytes(checkpoint):
        return whole
    return min(whole, walk_of(checkpoint, recipe, recipe.evaluate).sufficient_bytes)


def running_bytes(checkpoint: Checkpoint, recipe: Recipe, targets: Iterable[Target]) -> int:
    """Give about what the processes that run a model hold at their peak.

    Args:
        checkpoint: The model.
        recipe: What is to be done.
        targets: What the job changes.

    Returns:
        Bytes of resident memory; 0 where the model is not run.
    """
    held = [evaluating_bytes(checkpoint, recipe)]
    if recipe.calibrate is not None:
        held.append(_calibrating_bytes(checkpoint, recipe, recipe.calibrate, list(targets)))
    if recipe.finetune_step is not None:
        step = recipe.finetune_step
        trained = training_bytes(checkpoint, recipe, step, LIBRARY_BYTES)
        held.append(LIBRARY_BYTES + round(trained))
    return max(held)


def evaluating_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Give about what evaluating a model holds at its peak; 0 where the recipe does not."""
    if recipe.evaluate is None:
        return 0
    if is_walked(checkpoint, recipe):
        return walk_of(checkpoint, recipe, recipe.evaluate).peak_bytes(recipe.budget.host_memory)
    return whole_bytes(checkpoint)


def _calibrating_bytes(
    checkpoint: Checkpoint, recipe: Recipe, calibrate: Calibrate, targets: list[Target]
) -> int:
    """Give a block with what is known of its inputs, and the activations of all rows before it.

    Of gradients, all of the model with what a batch leaves in it on its way forward.
    """
    if _has_gradients(recipe):
        return whole_bytes(checkpoint) + backward_bytes(checkpoint, calibrate)
    tokens = calibrate.rows * calibrate.max_length
    activations = tokens * width_of(checkpoint.config or {}) * _ACTIVATION_BYTES
    sums = 0
    if recipe.rounding is not None and recipe.rounding.method == "gptq":
        inputs = {t.matrix.inputs for t in targets if t.is_calibrated}
        # Of each, and of the widest what inverting it takes.
        sums = 4 * (sum(n * n for n in inputs) + _INVERSES * max(inputs, default=0) ** 2)
    block = round((1 + SHARE_ON_TOP) * largest_block_bytes(checkpoint))
    return LIBRARY_BYTES + block + sums + activations


def _has_gradients(recipe: Recipe) -> bool:
    return recipe.shrink_step is not None and recipe.shrink_step.importance == "taylor"


def _unsupported(pointer: str, detail: str) -> Problem:
    code = "evaluation_unsupported"
    return Problem(code, detail, errors=[Detail(pointer, code, detail)])
