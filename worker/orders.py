"""What the runners of a job are told, one after the other."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from jobs.recipe import Recipe, parse_recipe
from worker.collect import require_folder
from worker.order import Order
from worker.work_files import ANSWERS_NAME, ARTIFACT_NAME

#: Where all stages but the last make what the next one begins with.
_STAGE_NAME = "stage-"


def stage_orders(order: Order, recipe: Recipe) -> list[Order]:
    """Give an order for every stage of a recipe.

    Args:
        order: Of the job, with all of its recipe; it says `compress`.
        recipe: What of that changes the model.

    Returns:
        Orders with the recipes of the stages. Each takes for its model what the one before it made
        in a folder of its own; the last one works in the job's.
    """
    orders: list[Order] = []
    stages, steps = recipe.stages, len(order.recipe["steps"])
    model, before = order.model_folder, 0
    for number, stage in enumerate(stages, start=1):
        is_last = number == len(stages)
        step = stage.finetune_step and recipe.finetune_step
        is_aware = step is not None and step.quantize_aware
        work = Path(order.work_folder) / ("" if is_last else f"{_STAGE_NAME}{number}")
        orders.append(
            replace(
                order,
                model_folder=model,
                original_folder=None if model == order.model_folder else order.model_folder,
                work_folder=str(work),
                recipe=stage.model_dump(mode="json"),
                rounding=stages[number].model_dump(mode="json") if is_aware else None,
                task="finetune" if stage.finetune_step else "compress",
                steps_before=before,
                # An infer step too: what it runs is not made anew where it was killed.
                steps_after=steps - before - len(stage.steps),
            )
        )
        model, before = str(work / ARTIFACT_NAME), before + len(stage.steps)
    return orders


def making_orders(order: Order, recipe: Recipe, datasets: Mapping[str, Path]) -> list[Order]:
    """Give the orders of the runners that make the artifact, its own verification apart.

    Args:
        order: Of the job; it says `compress`.
        recipe: Its recipe.
        datasets: The uploaded files, by the ids of the data sets.

    Returns:
        Those of each stage, and between two stages one that verifies the first of them.
    """
    orders: list[Order] = []
    stages = stage_orders(order, recipe)
    for stage in stages:
        orders += _making_orders(stage, recipe, datasets)
        if stage is not stages[-1]:
            orders.append(replace(orders[-1], task="verify"))
    return orders


def _making_orders(order: Order, whole: Recipe, datasets: Mapping[str, Path]) -> list[Order]:
    """Give the orders of one stage.

    Args:
        order: Of the stage.
        whole: The recipe of the job.
        datasets: The uploaded files, by the ids of the data sets.

    Returns:
        Its own, and before it one that says `calibrate` where data decide about weights. Of a
        program that loses channels, it has the data set that what is left is trained on, or that
        the artifact will be run on.
    """
    recipe = parse_recipe(order.recipe)
    if recipe.finetune_step is not None:
        return [replace(order, dataset=str(datasets[recipe.finetune_step.dataset]))]
    if recipe.calibrate is None:
        section = whole.finetune_step or recipe.evaluate
        name = section.dataset if section else None
        is_shrunk = any(step.op == "shrink" for step in recipe.steps)
        return [replace(order, dataset=str(datasets[name])) if name and is_shrunk else order]
    dataset = str(datasets[recipe.calibrate.dataset])
    return [replace(order, task="calibrate", dataset=dataset), order]


def running_orders(order: Order, recipe: Recipe, datasets: Mapping[str, Path]) -> list[Order]:
    """Give the orders of the runners that run the model and then what was made of it.

    Args:
        order: Of the job.
        recipe: Its recipe, which evaluates.
        datasets: The uploaded files, by the ids of the data sets.

    Returns:
        One that says `run_original`, and those that say `run_artifact`: of every stage where the
        recipe evaluates between steps, else of the last one alone.
    """
    name = recipe.evaluate.dataset if recipe.evaluate else None
    named = replace(order, dataset=str(datasets[name]) if name else None)
    orders = [replace(named, task="run_original")]
    is_split = recipe.evaluate is not None and recipe.evaluate.between
    for stage in stage_orders(order, recipe)[:-1] if is_split else []:
        artifact = str(Path(stage.work_folder) / ARTIFACT_NAME)
        orders.append(replace(named, task="run_artifact", artifact_folder=artifact))
    return [*orders, replace(named, task="run_artifact")]


def answering_orders(order: Order, recipe: Recipe, datasets: Mapping[str, Path]) -> Iterator[Order]:
    """Give the orders of the two runners of an infer step.

    Args:
        order: Of the job, with all of its recipe.
        recipe: The recipe.
        datasets: The uploaded files, by the ids of the data sets.

    Yields:
        One that says `infer`; and once that is done, one that says `recheck`.

    Raises:
        Problem: `invalid_artifact`: the first left no folder of answers.
    """
    if recipe.infer_step is None:
        return
    named = replace(order, dataset=str(datasets[recipe.infer_step.dataset]))
    yield replace(named, task="infer")
    # It is shown to the next one by its path.
    require_folder(Path(order.work_folder) / ANSWERS_NAME)
    yield replace(named, task="recheck")
