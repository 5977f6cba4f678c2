"""Takes a model through its calibration data, and writes what these decide about."""

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from calibration.choosing import Choice, choose_weights
from calibration.gradients import measure_gradients
from calibration.input_importance import measure_inputs
from engine.inspection import find_module_kinds
from evaluation.faults import blamed_on
from evaluation.freed_memory import give_freed_memory_back
from evaluation.inputs import Batch, batches_of
from evaluation.skeletons import Skeleton
from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.problems import Problem
from jobs.quality import Calibration
from jobs.recipe import Recipe
from planning.calibrated_files import IMPORTANCE
from planning.plan import make_plan
from planning.shrinking import shrink


def calibrate(
    model_folder: Path,
    dataset: Path,
    recipe: Recipe,
    folder: Path,
    on_done: Callable[[int, int], None],
) -> Calibration:
    """Take a model through data: to choose weights, or to find which heads and channels matter.

    Args:
        model_folder: A transformers folder; it is only read.
        dataset: The uploaded file.
        recipe: Whose calibrated steps.
        folder: Where what was found goes, as `planning.calibrated_files` says; empty.
        on_done: Told how many blocks are done and how many there are; or batches, where gradients
            are needed.

    Returns:
        What was found.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`, `unknown_architecture`; `nothing_changed`:
            no norm could be smoothed.
    """
    started = time.perf_counter()
    give_freed_memory_back()
    checkpoint = open_checkpoint(model_folder)
    kinds = find_module_kinds(checkpoint)
    if kinds is None or recipe.calibrate is None:
        raise Problem("evaluation_unsupported", "Calibrated steps run transformers folders only.")
    shrinkage = shrink(checkpoint, recipe)
    skeleton = Skeleton(checkpoint, kinds, _main_dtype(checkpoint))
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        batches = list(batches_of(skeleton.model, model_folder, dataset, recipe.calibrate))
    if not batches:
        raise Problem("invalid_dataset", "The data set has no rows.")
    if shrinkage is None:
        plan = make_plan(checkpoint, kinds, recipe)
        found = choose_weights(skeleton, batches, plan, folder, on_done)
    else:
        measure = measure_gradients if _needs_gradients(recipe) else measure_inputs
        (folder / IMPORTANCE).mkdir(parents=True)
        blocks = measure(skeleton, batches, shrinkage, folder / IMPORTANCE, on_done)
        found = Choice(blocks)
    return Calibration(
        rows=sum(batch.rows for batch in batches),
        tokens=_tokens(batches),
        blocks=found.blocks,
        smoothed_norms=found.smoothed_norms,
        error_ratios=found.error_ratios,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=time.perf_counter() - started,
    )


def _needs_gradients(recipe: Recipe) -> bool:
    return recipe.shrink_step is not None and recipe.shrink_step.importance == "taylor"


def _main_dtype(checkpoint: Checkpoint) -> str:
    elements: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        elements[tensor.dtype] += tensor.elements
    return elements.most_common(1)[0][0]


def _tokens(batches: Iterable[Batch]) -> int | None:
    counts = [
        int(batch.mask.sum()) if batch.mask is not None else batch.inputs["input_ids"].numel()
        for batch in batches
        if "input_ids" in batch.inputs
    ]
    return sum(counts) if counts else None
