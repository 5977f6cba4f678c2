"""What a recipe has to reach, and what comes nearest where none does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.checkpoint import INDEX_NAME, Checkpoint
from jobs.goal import Goal
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe
from jobs.report import Loader
from planning.forecast import Forecast
from planning.plan import Plan
from planning.prediction import find_overruns
from planning.side_files import find_side_files


@dataclass(frozen=True)
class Suggestion:
    """A recipe that is known to the byte, and what it is predicted to lose.

    Attributes:
        recipe: The recipe, complete.
        made: What a job with it would do and cost.
        loss: See `planning.losses`.
        loaders: What opens its artifact.
    """

    recipe: Recipe
    made: Forecast
    loss: float
    loaders: dict[str, Loader]

    @property
    def artifact_bytes(self) -> int:
        """Size of all files of its artifact but the manifest."""
        return self.made.plan.artifact_bytes

    @property
    def size_ratio(self) -> float:
        """Its tensor files over those of the model."""
        return tensor_bytes(self.made.plan) / self.made.plan.model_bytes

    @property
    def opens_with(self) -> frozenset[str]:
        """The loaders that open its artifact."""
        return frozenset(name for name, loader in self.loaders.items() if loader.ok)


def plain_members(recipe: Recipe) -> dict[str, Any]:
    """Give a recipe as plain values, as people write it: without what is the default anyway."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


def tensor_bytes(plan: Plan) -> int:
    """Give the size of an artifact's tensor files."""
    return sum(shard.nbytes for shard in plan.shards)


def target_of(goal: Goal, plan: Plan) -> int:
    """Give the size that all files of an artifact may have.

    Args:
        goal: Which may ask for a ratio, which is of the tensor files alone.
        plan: The plan that rounds all it can: what is beside its tensor files only grows where
            weights stay float.

    Returns:
        Bytes.
    """
    sizes = [] if goal.target_bytes is None else [int(goal.target_bytes)]
    if goal.max_size_ratio is not None:
        beside = plan.artifact_bytes - tensor_bytes(plan)
        sizes.append(int(goal.max_size_ratio * plan.model_bytes) + beside)
    return min(sizes)


def refuse_pointless(checkpoint: Checkpoint, goal: Goal) -> None:
    """Refuse a goal that needs no recipe, or that none can be judged by.

    Args:
        checkpoint: The model.
        goal: What is wanted.

    Raises:
        Problem: `nothing_changed`: the model is no larger as it is. `evaluation_unsupported`: it
            cannot be run, and the goal has a condition on its answers.
    """
    if goal.min_cosine is not None and checkpoint.config is None:
        detail = "min_cosine runs transformers folders, and the model has no config.json."
        raise _problem("evaluation_unsupported", detail, "min_cosine", {})
    whole = _whole_bytes(checkpoint)
    if goal.target_bytes is not None and goal.max_size_ratio is None and whole <= goal.target_bytes:
        detail = f"The model has {whole} bytes as it is; target_bytes is {goal.target_bytes}."
        raise _problem("nothing_changed", detail, "target_bytes", {"model_bytes": whole})


def is_within(one: Suggestion, goal: Goal) -> bool:
    """Say whether an artifact is as small as a goal wants it."""
    is_small = goal.target_bytes is None or one.artifact_bytes <= goal.target_bytes
    return is_small and (goal.max_size_ratio is None or one.size_ratio <= goal.max_size_ratio)


def fits(one: Suggestion) -> bool:
    """Say whether a job with a recipe keeps its budget."""
    return not find_overruns(one.made.prediction, one.recipe.budget)


def reaches(one: Suggestion, goal: Goal) -> bool:
    """Say whether a recipe reaches a goal."""
    is_good = goal.max_loss is None or one.loss <= goal.max_loss
    return is_within(one, goal) and fits(one) and is_good


def unreachable(tried: Sequence[Suggestion], goal: Goal) -> Problem:
    """Say what comes nearest to a goal that no recipe reaches.

    Args:
        tried: All recipes; none reaches it.
        goal: What is wanted.

    Returns:
        `goal_unreachable`, with the least that can be reached and the recipe that does it.
    """
    code = "goal_unreachable"
    if not tried:
        return _problem(code, "No recipe can be judged for this model.", "", {})
    small = [one for one in tried if is_within(one, goal)]
    if not small:
        return _too_large(min(tried, key=lambda one: (one.artifact_bytes, one.loss)), goal)
    fitting = [one for one in small if fits(one)]
    if not fitting:
        return _too_hungry(
            min(small, key=lambda one: one.made.prediction.sufficient_host_bytes), goal
        )
    nearest = min(fitting, key=lambda one: one.loss)
    detail = f"max_loss is {goal.max_loss:g}, and the least is {nearest.loss:.3g}"
    return _nearest(nearest, nearest.recipe, detail, "max_loss", {})


def _too_large(nearest: Suggestion, goal: Goal) -> Problem:
    # Its own gate would refuse it.
    gate = nearest.recipe.gate.model_copy(update={"max_size_ratio": None})
    recipe = nearest.recipe.model_copy(update={"gate": gate})
    ratio, least = nearest.size_ratio, nearest.artifact_bytes
    extra = {"least_size_ratio": ratio}
    loss = f", with a predicted loss of {nearest.loss:.3g}"
    if goal.max_size_ratio is not None and ratio > goal.max_size_ratio:
        detail = f"max_size_ratio is {goal.max_size_ratio:g}, and the least is {ratio:.4f}{loss}"
        return _nearest(nearest, recipe, detail, "max_size_ratio", extra)
    detail = f"target_bytes is {goal.target_bytes}, and the least is {least} bytes{loss}"
    return _nearest(nearest, recipe, detail, "target_bytes", extra)


def _too_hungry(nearest: Suggestion, goal: Goal) -> Problem:
    least = nearest.made.prediction.sufficient_host_bytes
    budget = nearest.recipe.budget.model_copy(update={"host_memory": least})
    recipe = nearest.recipe.model_copy(update={"budget": budget})
    detail = f"host_memory is {goal.host_memory}, and the least is {least} bytes"
    return _nearest(nearest, recipe, detail, "host_memory", {"least_host_memory": least})


def _nearest(
    one: Suggestion, recipe: Recipe, detail: str, member: str, extra: dict[str, Any]
) -> Problem:
    members = plain_members(recipe)
    found = {"least_bytes": one.artifact_bytes, "loss": one.loss, "recipe": members, **extra}
    told = f"{detail}, by {json.dumps(members)}."
    return _problem("goal_unreachable", told, member, found)


def _problem(code: str, detail: str, member: str, extra: dict[str, Any]) -> Problem:
    errors = [Detail(f"/goal/{member}".rstrip("/"), code, detail)]
    return Problem(code, detail, errors=errors, extra=extra)


def _whole_bytes(checkpoint: Checkpoint) -> int:
    """Give the size of the model's own files, as far as an artifact has them too."""
    headers = [shard.header for shard in checkpoint.shards]
    beside = {*find_side_files(checkpoint.others), "config.json", INDEX_NAME}
    return sum(header.data_start + header.data_bytes for header in headers) + sum(
        size for name, size in checkpoint.others.items() if name in beside
    )
