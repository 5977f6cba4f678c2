"""The recipes that suggestions are made of: ways to round a model, and widths to shrink it to.

Pruning to zeros is not among them: zeros stay in the file, so it brings no artifact nearer to a
size. What needs data is not either, because a suggestion goes by weights alone; and w8a8 takes as
many bytes as w8a16 and loses what weights cannot tell, by rounding activations too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jobs.checkpoint import Checkpoint
from jobs.goal import Goal
from jobs.problems import Problem
from jobs.recipe import Budget, Recipe
from planning.shrinking import shrink

#: How many inputs share a scale; the kernels of vLLM take these.
GROUP_SIZES = (None, 128, 32)
#: Fractions of heads and channels that a shrink step keeps.
WIDTHS = (0.9, 0.75, 0.5)
#: Above every error, so that all are measured and nothing stays float for them.
_NO_LIMIT = 1e9


@dataclass(frozen=True)
class Family:
    """Recipes that differ only in how much stays float.

    Attributes:
        width: Of a shrink step; None for none.
        group_size: Of the quantize step.
        embeddings: Whether it rounds embeddings.
        output: What the artifact is written as.
    """

    width: float | None
    group_size: int | None
    embeddings: bool
    output: Literal["auto", "safetensors"] = "auto"

    @property
    def is_optional(self) -> bool:
        """Whether some models have no weight for it, as where groups of inputs do not come out."""
        return self.group_size is not None

    def recipe(self, goal: Goal, target_bytes: int | None) -> Recipe:
        """Give a recipe of this family.

        Args:
            goal: What is wanted beside a size.
            target_bytes: The size that weights stay float for; None rounds all of them.

        Returns:
            The recipe, complete.
        """
        limits = {"target_bytes": target_bytes, "max_relative_rmse": goal.max_relative_rmse}
        gate = {"max_size_ratio": goal.max_size_ratio, "min_cosine": goal.min_cosine}
        members: dict[str, Any] = {
            "steps": self._steps(**limits),
            "budget": _given(host_memory=goal.host_memory),
            "gate": _given(**gate),
            "output": {"format": self.output},
        }
        if goal.min_cosine is not None:
            members["evaluate"] = {}
        return Recipe.model_validate(members)

    def measuring(self, budget: Budget) -> Recipe:
        """Give a recipe that takes every weight that any of this family takes."""
        steps = self._steps(max_relative_rmse=_NO_LIMIT)
        members = {"steps": steps, "output": {"format": self.output}}
        return Recipe.model_validate(members).model_copy(update={"budget": budget})

    def _steps(self, **limits: float | None) -> list[dict[str, Any]]:
        quantize = {"op": "quantize", "scheme": "w8a16"}
        quantize |= _given(group_size=self.group_size, embeddings=self.embeddings or None, **limits)
        shrink = {"op": "shrink", "width": self.width}
        return [shrink, quantize] if self.width else [quantize]


#: Those that lose less stand before those that lose more, which are for where they do not suffice:
#: int8 that the ecosystem's loaders open, int8 for load.py alone, and smaller layers.
LEVELS = (
    tuple(Family(None, size, rows) for size in GROUP_SIZES for rows in (False, True)),
    tuple(Family(None, None, rows, "safetensors") for rows in (False, True)),
    tuple(Family(width, None, rows) for width in WIDTHS for rows in (False, True)),
)


def measuring_families(checkpoint: Checkpoint) -> Iterator[Family]:
    """Yield what must be measured of a model to judge all recipes, the model as it is first.

    Args:
        checkpoint: The model.

    Yields:
        One family for every width that its architecture allows, and for every size of groups.
    """
    for size in GROUP_SIZES:
        yield Family(None, size, embeddings=True, output="safetensors")
    for width in WIDTHS:
        family = Family(width, None, embeddings=True, output="safetensors")
        try:
            shrink(checkpoint, family.measuring(Budget()))
        except Problem:
            continue
        yield family


def _given(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
