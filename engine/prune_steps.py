"""What a recipe's prune steps say of the tensors that they prune."""

from collections.abc import Mapping, Sequence

from engine import float_kernels
from engine.rankings import Draws, Magnitudes, Ranking, WideMagnitudes, seed_of
from jobs.recipe import Recipe
from jobs.steps import PruneStep
from planning.extents import Extent
from planning.matrices import pruned_count
from planning.selection import Target
from planning.working_set import is_wide


class PruneSteps:
    """Answers for every step and tensor what is ranked, among what, and how many go.

    Args:
        recipe: Whose prune steps.
        targets: What they prune, in the order of the files.
        extents: How each is cut, by its name.

    Attributes:
        targets: What they prune.
    """

    targets: Sequence[Target]

    def __init__(
        self, recipe: Recipe, targets: Sequence[Target], extents: Mapping[str, Extent]
    ) -> None:
        self._recipe = recipe
        self.targets = targets
        self._extents = extents
        self._drawn_before: dict[tuple[int, str], int] = {}
        for index in range(len(recipe.steps)):
            drawn = 0
            for target in self.pruned_by(index):
                self._drawn_before[index, target.name] = drawn
                drawn += target.matrix.tensor.elements

    def __getitem__(self, index: int) -> PruneStep:
        step = self._recipe.steps[index]
        assert isinstance(step, PruneStep)  # noqa: S101 - selection lists prune steps alone
        return step

    def __len__(self) -> int:
        return len(self._recipe.steps)

    def pruned_by(self, index: int) -> list[Target]:
        """Give the tensors that a step prunes, in their order."""
        return [target for target in self.targets if index in target.prune_steps]

    def is_measured_whole(self, index: int) -> bool:
        """Say whether a step's threshold counts over whole tensors."""
        step = self[index]
        is_counted = step.structure == "unstructured" and step.scope != "row"
        return is_counted and not step.is_calibrated

    def is_global(self, index: int) -> bool:
        """Say whether a step has one threshold for all tensors."""
        return self.is_measured_whole(index) and self[index].scope == "global"

    def stream(self, index: int, target: Target) -> tuple[int, str]:
        """Name the keys among which the threshold counts that a step has for a tensor."""
        return index, "" if self.is_global(index) else target.name

    def is_counted_alone(self, index: int, target: Target) -> bool:
        """Say whether a step's threshold has nothing to do with what the steps before leave."""
        if self[index].method == "random":
            return True
        return all(min(t.prune_steps) == index for t in self.measured_with(index, target))

    def measured_with(self, index: int, target: Target) -> list[Target]:
        """Give the tensors over which the threshold counts that a step has for one of them."""
        return self.pruned_by(index) if self.is_global(index) else [target]

    def count(self, index: int, target: Target) -> int:
        """Give how many weights of those become 0."""
        elements = sum(t.matrix.tensor.elements for t in self.measured_with(index, target))
        return pruned_count(self[index].sparsity or 0.0, elements)

    def ranking(self, index: int, target: Target) -> Ranking:
        """Give what decides which weights of a tensor a step prunes."""
        step = self[index]
        if step.method == "random":
            is_global = self.is_global(index)
            first = self._drawn_before[index, target.name] if is_global else 0
            seed = seed_of(step.seed, index, "" if is_global else target.name)
            return Draws(seed, target.matrix, self._extents[target.name], first)
        if is_wide(index, self._recipe, self.targets):
            return WideMagnitudes(float_kernels.KINDS[target.matrix.tensor.dtype])
        return Magnitudes(target.itemsize)
