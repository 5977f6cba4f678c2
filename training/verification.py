"""A trained folder opened again, and compared with the one that it was made from."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.memory import own_peak_bytes
from engine.progress import Progress, Ticker
from engine.verified_files import check_files, open_artifact
from engine.verified_forms import find_forms, wrong
from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.report import Report, TensorReport, Verification
from jobs.safetensors_header import TensorSpec
from training.comparing import Difference, Pair

_ADAPTER_FILES = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
#: From this share of zeros on a weight was pruned, and keeps its zeros.
SPARSE_SHARE = 0.01


def verify_folder(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    report: Report,
    on_progress: Callable[[Progress], None],
) -> Verification:
    """Compare a trained folder with the one it was made from, all of both.

    Args:
        model_folder: What was trained.
        artifact_folder: What came of it.
        recipe: Its finetune step.
        report: What is said to have become of each tensor.
        on_progress: Told how far it is.

    Returns:
        What was looked at. The folder holds the same tensors in the same dtypes and shapes, and
        loads as before; every value is finite; pruned weights are still zero, all of them; the
        report's numbers are right; and what is not in the report has not changed by a bit.

    Raises:
        Problem: `invalid_artifact`, with the tensor; `nothing_changed`.
    """
    started = time.perf_counter()
    model, artifact = open_checkpoint(model_folder), open_artifact(artifact_folder)
    forms = find_forms(model.tensors, artifact.tensors, recipe, {})
    adapters = _check_adapters(artifact, recipe)
    apart = {name: n for name, n in artifact.others.items() if name not in adapters}
    artifact = replace(artifact, others=apart)
    check_files(model, artifact, forms, recipe)
    ticker = Ticker(on_progress, Progress("verify", 1, 1, 0, len(forms), "tensors"))
    told = {tensor.name: tensor for tensor in report.tensors}
    pair = Pair(model, artifact)
    rows = 0
    for form in forms:
        found = pair.compare(form.source.name)
        check_difference(form.source, found, told.get(form.source.name))
        rows += form.rows
        ticker.advance(1)
    if not told and not adapters:
        raise Problem("nothing_changed", "Training changed no weight. Raise the learning rate.")
    return Verification(
        tensors=len(forms),
        rows=rows,
        max_error_steps=None,
        seconds=time.perf_counter() - started,
        peak_bytes=own_peak_bytes(),
    )


def _check_adapters(artifact: Checkpoint, recipe: Recipe) -> list[str]:
    """Check that adapters' files are there where they are kept apart, and give their names."""
    step = recipe.finetune_step
    names = [name for name in artifact.others if name.startswith("adapter/")]
    is_wanted = step is not None and step.lora is not None and not step.lora.merge
    if sorted(names) != (_ADAPTER_FILES if is_wanted else []):
        raise Problem("invalid_artifact", f"The adapter's files are {sorted(names)}.")
    return names


def check_difference(tensor: TensorSpec, found: Difference, told: TensorReport | None) -> None:
    """Check what became of a tensor.

    Args:
        tensor: The tensor.
        found: What was found of it.
        told: What the report says; None where it says nothing.

    Raises:
        Problem: `invalid_artifact`.
    """
    if found.is_changed != (told is not None):
        raise wrong(tensor.name, "differs from the model, and the report does not say so")
    if found.non_finite and found.is_changed:
        raise wrong(tensor.name, "holds a NaN or an infinity")
    if found.zeros_lost and found.zeros_scattered >= SPARSE_SHARE * found.elements:
        raise wrong(tensor.name, f"has {found.zeros_lost} weights that were pruned and are not 0")
    share = found.zeros_after / max(1, found.elements)
    if told is not None and abs(told.after.sparsity - share) > 1e-9:
        raise wrong(tensor.name, "has another share of zeros than the report says")
