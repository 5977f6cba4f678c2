"""Whether a model can be run, and what it takes: an estimate, as only its own code knows more."""

from collections import Counter
from collections.abc import Iterable

from jobs.checkpoint import Checkpoint
from jobs.problems import Detail, Problem
from jobs.recipe import Calibrate, Recipe
from planning.blocks import block_of
from planning.selection import Target
from planning.training import least_training_bytes, training_bytes

#: torch and transformers, once imported: seen 440 to 500 MB, and none below the first.
_LEAST_LIBRARY_BYTES = 400_000_000
_LIBRARY_BYTES = 470_000_000
#: Loading holds some weights twice, and outputs and activations come on top.
_SHARE_ON_TOP = 0.15
#: What a config calls the width of what blocks hand on, and what of it a row's token takes.
WIDTH_KEYS = ("hidden_size", "d_model", "n_embd", "dim")
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
    if (recipe.evaluate is None and recipe.infer_step is None) or compression is None:
        return
    if recipe.output.format == "safetensors" and compression.rounding is not None:
        section = "evaluate" if recipe.evaluate else "infer"
        raise _unsupported(
            f"{pointer}/output/format",
            "transformers does not open int8 in plain safetensors, so the artifact cannot be run. "
            f"Leave output.format or {section} out.",
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
    """Give what the processes that run a model hold at least: the libraries, and their weights.

    Args:
        checkpoint: The model; its artifact is float again when it is run.
        recipe: What is to be done.

    Returns:
        Bytes of resident memory; 0 where the model is not run.
    """
    held = []
    if recipe.evaluate is not None:
        held.append(_weight_bytes(checkpoint))
    if recipe.calibrate is not None:
        held.append(_largest_block_bytes(checkpoint))
    if recipe.finetune_step is not None:
        held.append(least_training_bytes(checkpoint, recipe.finetune_step))
    return _LEAST_LIBRARY_BYTES + max(held) if held else 0


def running_bytes(checkpoint: Checkpoint, recipe: Recipe, targets: Iterable[Target]) -> int:
    """Give about what the processes that run a model hold at their peak.

    Args:
        checkpoint: The model.
        recipe: What is to be done.
        targets: What the job changes.

    Returns:
        Bytes of resident memory; 0 where the model is not run.
    """
    held = []
    if recipe.evaluate is not None:
        held.append((1 + _SHARE_ON_TOP) * _weight_bytes(checkpoint))
    if recipe.calibrate is not None:
        held.append(_calibrating_bytes(checkpoint, recipe, recipe.calibrate, list(targets)))
    if recipe.finetune_step is not None:
        step = recipe.finetune_step
        held.append(training_bytes(checkpoint, recipe, step, _LIBRARY_BYTES))
    return _LIBRARY_BYTES + round(max(held)) if held else 0


def _calibrating_bytes(
    checkpoint: Checkpoint, recipe: Recipe, calibrate: Calibrate, targets: list[Target]
) -> float:
    """Give a block with what is known of its inputs, and the activations of all rows before it."""
    config = checkpoint.config or {}
    width = next((w for key in WIDTH_KEYS if isinstance(w := config.get(key), int)), 0)
    tokens = calibrate.rows * calibrate.max_length
    activations = tokens * width * _ACTIVATION_BYTES
    sums = 0
    if recipe.rounding is not None and recipe.rounding.method == "gptq":
        inputs = {t.matrix.inputs for t in targets if t.is_calibrated}
        # Of each, and of the widest what inverting it takes.
        sums = 4 * (sum(n * n for n in inputs) + _INVERSES * max(inputs, default=0) ** 2)
    return (1 + _SHARE_ON_TOP) * _largest_block_bytes(checkpoint) + sums + activations


def _largest_block_bytes(checkpoint: Checkpoint) -> int:
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[block_of(tensor.name) or ""] += tensor.nbytes
    sizes.pop("", None)
    return max(sizes.values(), default=0)


def _weight_bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def _unsupported(pointer: str, detail: str) -> Problem:
    code = "evaluation_unsupported"
    return Problem(code, detail, errors=[Detail(pointer, code, detail)])
