"""Recipes that reach a goal, those first that are predicted to lose least."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jobs.checkpoint import Checkpoint
from jobs.goal import Goal
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.sensitivities import Sensitivities, Variant
from planning.aims import settle
from planning.forecast import Forecast, forecast
from planning.goals import (
    Suggestion,
    is_within,
    reaches,
    refuse_pointless,
    target_of,
    tensor_bytes,
    unreachable,
)
from planning.loaders import loaders_of
from planning.losses import loss_of
from planning.memory_model import Levels
from planning.palette import LEVELS, Family
from planning.plan import Plan

#: As many recipes are suggested at most.
MOST = 3
#: A recipe that loses more than the one before it is worth a line where it is this much smaller.
_WORTH = 0.98
#: Parts of the room above the smallest artifact that are tried as targets. A target is met by
#: exchanging weights for larger ones, which costs where there are few: less of the room may lose
#: less then. With many weights nothing is won by that, and it takes long.
_PARTS = (1.0, 0.9, 0.75, 0.5)
_FEW_UNITS = 64
#: What speaks against a family of recipes, not against the goal.
_FAMILY_CODES = frozenset({"nothing_changed", "output_unsupported", "target_unreachable"})


def suggest(
    checkpoint: Checkpoint, goal: Goal, found: Sensitivities, levels: Levels
) -> list[Suggestion]:
    """Find recipes that reach a goal.

    Args:
        checkpoint: The model; nothing but its headers and config is looked at.
        goal: What is wanted.
        found: What was measured of the model.
        levels: What is known of the processes that run jobs.

    Returns:
        At least one and at most `MOST`, the one with the least loss first. None of them is larger
        and loses more than another that the same loaders open. Smaller layers are suggested only
        where no rounding reaches the goal.

    Raises:
        Problem: `goal_unreachable`, with what comes nearest to it; or as
            `planning.goals.refuse_pointless`.
    """
    refuse_pointless(checkpoint, goal)
    search = _Search(checkpoint, goal, found, levels)
    tried: list[Suggestion] = []
    for families in LEVELS:
        tried += [one for family in families for one in search.recipes_of(family)]
        reaching = [one for one in tried if reaches(one, goal)]
        if reaching:
            return choose(reaching)
    raise unreachable(tried, goal)


def choose(reaching: Sequence[Suggestion]) -> list[Suggestion]:
    """Choose what is worth a look.

    Args:
        reaching: Recipes that reach the goal.

    Returns:
        The one with the least loss, and those after it that are notably smaller or that more
        loaders open, in the order of their losses.
    """
    ranked = sorted(reaching, key=_rank)
    front = [one for i, one in enumerate(ranked) if not any(_beats(o, one) for o in ranked[:i])]
    chosen = front[:1]
    for one in front[1:]:
        is_smaller = one.artifact_bytes <= _WORTH * chosen[-1].artifact_bytes
        if is_smaller or one.opens_with > chosen[-1].opens_with:
            chosen.append(one)
    return (chosen if len(chosen) > 1 else front)[:MOST]


def _rank(one: Suggestion) -> tuple[float, int, int]:
    return one.loss, one.artifact_bytes, -len(one.opens_with)


def _beats(first: Suggestion, second: Suggestion) -> bool:
    """Say whether nobody needs the second, which loses no less than the first."""
    is_no_larger = first.artifact_bytes <= second.artifact_bytes
    return is_no_larger and first.opens_with >= second.opens_with


@dataclass(frozen=True)
class _Search:
    """Finds out what recipes would do."""

    checkpoint: Checkpoint
    goal: Goal
    found: Sensitivities
    levels: Levels

    def recipes_of(self, family: Family) -> Iterator[Suggestion]:
        """Yield a family's recipe that rounds everything, and the best one that uses the size."""
        variant = self.found.find(family.width, family.group_size)
        if variant is None or (family.output == "safetensors" and self.goal.min_cosine is not None):
            return
        smallest = self._try(family.recipe(self.goal, None), variant)
        if smallest is None or (family.embeddings and not _rounds_embeddings(smallest)):
            return
        yield smallest
        fuller = [self._try(recipe, variant) for recipe in self._fuller(family, smallest)]
        known = [one for one in fuller if one is not None and is_within(one, self.goal)]
        if known:
            yield min(known, key=lambda one: (one.loss, one.artifact_bytes))

    def _fuller(self, family: Family, smallest: Suggestion) -> Iterator[Recipe]:
        """Yield recipes that leave float what the goal has room for, or a part of that."""
        least, plan = smallest.artifact_bytes, smallest.made.plan
        room = target_of(self.goal, plan) - least
        parts = _PARTS if len(plan.selection.units) <= _FEW_UNITS else _PARTS[:1]
        for part in parts if room > 0 else ():
            yield family.recipe(self.goal, least + int(part * room))

    def _try(self, recipe: Recipe, variant: Variant) -> Suggestion | None:
        """Find out what a job with a recipe would do; None where there would be no such job."""
        errors = {name: weight.relative_rmse for name, weight in variant.weights.items()}
        try:
            made = forecast(self.checkpoint, recipe, self.levels)
            if not _quantized(made.plan) <= errors.keys():
                # The worker took other modules for Linears than names and shapes tell.
                return None
            if recipe.aimed_step is not None:
                made = _settled(made, settle(made.plan, made.kinds, errors).plan)
        except Problem as problem:
            if problem.code in _FAMILY_CODES:
                return None
            raise
        plan = made.plan
        loaders = loaders_of(
            list(plan.selection.targets.values()),
            plan.output_format,
            has_config=self.checkpoint.config is not None,
            is_shrunk=plan.shrinkage is not None,
        )
        return Suggestion(recipe, made, loss_of(self.found, variant, _quantized(plan)), loaders)


def _rounds_embeddings(one: Suggestion) -> bool:
    targets = one.made.plan.selection.targets.values()
    return any(target.is_embedding and target.scheme is not None for target in targets)


def _settled(made: Forecast, plan: Plan) -> Forecast:
    """Give the forecast as it is once it is known what stays float."""
    *before, last = made.prediction.steps
    exact = replace(last, bytes_written=tensor_bytes(plan), tensors_changed=len(_quantized(plan)))
    prediction = replace(
        made.prediction, artifact_bytes=plan.artifact_bytes, steps=(*before, exact)
    )
    return replace(made, plan=plan, prediction=prediction)


def _quantized(plan: Plan) -> set[str]:
    return {target.name for target in plan.selection.targets.values() if target.scheme is not None}
