"""A trained program opened again, and compared with the one that it was made from."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.memory import own_peak_bytes
from engine.progress import Progress, Ticker
from engine.verified_forms import wrong
from jobs.problems import Problem
from jobs.program import Program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from jobs.report import Report, Verification
from planning.program_training import find_trained
from programs.values import ProgramFile
from training.program_comparing import ProgramPair
from training.verification import check_difference


def verify_trained_program(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    report: Report,
    on_progress: Callable[[Progress], None],
) -> Verification:
    """Compare a trained program with the one that it was made from, all of both.

    Args:
        model_folder: What was trained.
        artifact_folder: What came of it.
        recipe: Its finetune step.
        report: What is said to have become of each tensor.
        on_progress: Told how far it is.

    Returns:
        What was looked at. The artifact says of graph, names, shapes and dtypes what the program
        does, to the byte, and torch opens it. Only parameters that the step trains have changed;
        their values are finite; pruned weights are still zero, all of them; and the report's
        numbers are right.

    Raises:
        Problem: `invalid_artifact`, with the tensor; `nothing_changed`.
    """
    started = time.perf_counter()
    model, artifact = open_program(model_folder / PROGRAM_NAME), _open_artifact(artifact_folder)
    _check_entries(model, artifact)
    step = recipe.finetune_step
    trained = find_trained(model, step) if step is not None else {}
    may_change = {name for names in trained.values() for name in names}
    told = {tensor.name: tensor for tensor in report.tensors}
    ticker = Ticker(on_progress, Progress("verify", 1, 1, 0, len(model.tensors), "tensors"))
    pair = ProgramPair(model, artifact)
    rows = 0
    for name, tensor in model.tensors.items():
        found = pair.compare(name)
        if found.is_changed and name not in may_change:
            raise wrong(name, "has changed, and is nothing that the step trains")
        check_difference(tensor.spec, found, told.get(name))
        rows += tensor.spec.shape[0] if len(tensor.spec.shape) > 1 else 1
        ticker.advance(1)
    if not told:
        raise Problem("nothing_changed", "Training changed no weight. Raise the learning rate.")
    _require_opening(artifact)
    return Verification(
        tensors=len(model.tensors),
        rows=rows,
        max_error_steps=None,
        seconds=time.perf_counter() - started,
        peak_bytes=own_peak_bytes(),
    )


def _open_artifact(folder: Path) -> Program:
    try:
        return open_program(folder / PROGRAM_NAME)
    except Problem as problem:
        raise Problem("invalid_artifact", problem.detail) from problem


def _check_entries(model: Program, artifact: Program) -> None:
    """Check that both archives hold the same entries, and the same texts."""
    sizes = [{name: size for name, (_, size) in one.spans.items()} for one in (model, artifact)]
    if sizes[0] != sizes[1]:
        raise Problem("invalid_artifact", "The artifact's archive holds other entries.")
    weights = {tensor.entry for tensor in model.tensors.values()}
    before, after = ProgramFile(model), ProgramFile(artifact)
    for name in model.spans.keys() - weights:
        if not np.array_equal(before.entry(name), after.entry(name)):
            raise Problem("invalid_artifact", f"The artifact's {name} is not the program's.")


def _require_opening(artifact: Program) -> None:
    # It takes a second and 300 MB, and reading the archive comes first.
    from programs.opening import give_shapes  # noqa: PLC0415

    try:
        give_shapes(artifact.path)
    except Problem as problem:
        raise Problem("invalid_artifact", problem.detail) from problem
