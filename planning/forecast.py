"""What a job would do and cost, told by nothing but headers and a config."""

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.problems import Detail, Problem
from jobs.program import is_program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from planning.aims import refuse_target
from planning.architectures import guess_kinds, known_kinds
from planning.folder_stages import predict_folder_stages
from planning.inferring import join, predict_inference
from planning.memory_model import Levels
from planning.module_kinds import ModuleKinds
from planning.palette import measuring_families
from planning.plan import Plan, make_plan
from planning.prediction import Prediction, predict, refuse_overruns
from planning.program_prediction import predict_stages
from planning.program_stages import plan_program_stages
from planning.running import refuse_unmeasured, refuse_unrunnable
from planning.shrinking import shrink


@dataclass(frozen=True)
class Forecast:
    """What a job would do and cost.

    Attributes:
        plan: What it would do.
        prediction: What that would cost.
        levels: What was assumed of the processes that run it.
        is_exact: Whether it is certain which module is which.
        kinds: What was taken for that.
    """

    plan: Plan
    prediction: Prediction
    levels: Levels
    is_exact: bool
    kinds: ModuleKinds | None = None


def forecast(
    checkpoint: Checkpoint,
    recipe: Recipe,
    levels: Levels,
    pointer: str = "",
    rows: int | None = None,
) -> Forecast:
    """Say what a job would do and cost, without running anything.

    Args:
        checkpoint: The model; nothing but its headers and config is looked at.
        recipe: What to do to it.
        levels: What is known of the processes that run jobs.
        pointer: Where the recipe stands in the request.
        rows: How many rows the data set of an infer step has; None where nobody knows.

    Returns:
        The forecast. It is exact but for models that only their own code could tell about.

    Raises:
        Problem: As `shrink`, `make_plan`, `refuse_unrunnable`, `refuse_unmeasured` and
            `planning.aims.refuse_target`; `nothing_changed`: the recipe does nothing but infer;
            `step_unsupported`: it measures, which makes nothing that could be planned.
    """
    _refuse_measuring(recipe, pointer)
    refuse_unrunnable(recipe, pointer, has_config=checkpoint.config is not None)
    refuse_unmeasured(checkpoint, recipe, pointer)
    step, budget = recipe.infer_step, recipe.budget
    if recipe.compression is None:
        raise Problem("nothing_changed", "The recipe has no step that changes the model.")
    recipe = recipe.compression
    shrinkage = shrink(checkpoint, recipe, pointer)
    left = shrinkage.checkpoint if shrinkage else checkpoint
    kinds = known_kinds(left)
    is_exact = kinds is not None or left.config is None
    asked = kinds if is_exact else guess_kinds(left)
    plan = make_plan(left, asked, recipe, shrinkage=shrinkage)
    refuse_target(plan, pointer)
    assumed = replace(levels, inspection_bytes=0) if is_exact else levels
    if len(recipe.stages) > 1:
        prediction = predict_folder_stages(checkpoint, asked, recipe, assumed)
    else:
        prediction = predict(plan, assumed)
    if step is not None:
        prediction = join(prediction, predict_inference(checkpoint, step, budget, levels, rows))
    return Forecast(plan, prediction, assumed, is_exact, asked)


def check_budget(folder: Path, recipe: Recipe, levels: Levels, pointer: str = "") -> None:
    """Refuse a job that would certainly pass its budget, miss its target_bytes or shrink nothing.

    Args:
        folder: The model.
        recipe: What to do to it, and within what limits.
        levels: What is known of the processes that run jobs.
        pointer: Where the recipe stands in the request.

    Raises:
        Problem: `memory_budget_exceeded` or `disk_budget_exceeded`, with the smallest budget that
            would do; or as `forecast`, where there is a budget, a target, a shrink step or a gate
            on latency at all.
            What only a model's own code can tell is left to the job, which asks it. Of a program,
            all that is wrong with the recipe, too.
    """
    if recipe.infer_step is not None:
        model = (
            open_program(folder / PROGRAM_NAME) if is_program(folder) else open_checkpoint(folder)
        )
        prediction = predict_inference(model, recipe.infer_step, recipe.budget, levels)
        refuse_overruns(prediction, recipe.budget, pointer)
    if recipe.compression is None:
        return
    recipe = recipe.compression
    if is_program(folder):
        program = open_program(folder / PROGRAM_NAME)
        prediction = predict_stages(plan_program_stages(program, recipe, pointer), levels)
        refuse_overruns(prediction, recipe.budget, pointer)
        return
    if recipe.measures:
        _check_measuring(open_checkpoint(folder), recipe, levels, pointer)
        return
    budget = recipe.budget
    limits = (budget.host_memory, budget.device_memory, budget.disk)
    others = (recipe.aimed_step, recipe.shrink_step, recipe.gate.max_latency_ratio)
    if all(one is None for one in (*limits, *others)):
        return
    checkpoint = open_checkpoint(folder)
    refuse_unmeasured(checkpoint, recipe, pointer)
    shrink(checkpoint, recipe, pointer)
    if checkpoint.config is None or known_kinds(checkpoint) is not None:
        made = forecast(checkpoint, recipe, levels, pointer)
        refuse_overruns(made.prediction, budget, pointer)


def _check_measuring(checkpoint: Checkpoint, recipe: Recipe, levels: Levels, pointer: str) -> None:
    """Refuse to measure what cannot be, or with a budget that is too small for a part of it."""
    is_open = checkpoint.config is None or known_kinds(checkpoint) is not None
    for family in measuring_families(checkpoint) if is_open else ():
        try:
            made = forecast(checkpoint, family.measuring(recipe.budget), levels, pointer)
        except Problem as problem:
            if problem.code == "nothing_changed" and family.is_optional:
                continue
            raise
        refuse_overruns(made.prediction, recipe.budget, pointer)


def _refuse_measuring(recipe: Recipe, pointer: str) -> None:
    if recipe.measures:
        detail = "measure makes no artifact to be planned. Submit it, or ask with a goal."
        errors = [Detail(f"{pointer}/steps/0", "step_unsupported", detail)]
        raise Problem("step_unsupported", detail, errors=errors)
