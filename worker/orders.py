"""What the runners of a job are told, one after the other."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jobs.recipe import Recipe
from worker.runner import Order


def making_orders(order: Order, recipe: Recipe, datasets: Mapping[str, Path]) -> list[Order]:
    """Give the orders of the runners that make the artifact.

    Args:
        order: Of the job; it says `compress`.
        recipe: Its recipe.
        datasets: The uploaded files, by the ids of the data sets.

    Returns:
        It, and before it one that says `calibrate` where data decide about weights. Of a program
        that loses channels, it has the data set that the artifact will be run on.
    """
    if recipe.calibrate is None:
        name = recipe.evaluate.dataset if recipe.evaluate else None
        is_shrunk = any(step.op == "shrink" for step in recipe.steps)
        return [replace(order, dataset=str(datasets[name])) if name and is_shrunk else order]
    dataset = str(datasets[recipe.calibrate.dataset])
    return [replace(order, task="calibrate", dataset=dataset), order]


def running_orders(order: Order, recipe: Recipe, datasets: Mapping[str, Path]) -> list[Order]:
    """Give the orders of the two runners that run the model and then its artifact.

    Args:
        order: Of the job.
        recipe: Its recipe, which evaluates.
        datasets: The uploaded files, by the ids of the data sets.

    Returns:
        One that says `run_original`, and one that says `run_artifact`.
    """
    name = recipe.evaluate.dataset if recipe.evaluate else None
    named = replace(order, dataset=str(datasets[name]) if name else None)
    return [replace(named, task="run_original"), replace(named, task="run_artifact")]
