"""How many bytes every step of a recipe reads: the engine's looks at tensors, walked through.

Dimension key: I inputs of one channel.
"""

from jobs.recipe import Recipe
from jobs.steps import PruneStep
from planning.extents import extent_of
from planning.matrices import pruned_count
from planning.selection import Target
from planning.working_set import is_wide

#: How often a stream of keys is looked at to find the n-th smallest, by the keys' bits.
_LOOKS = {15: 1, 31: 2, 32: 2}


def bytes_read(targets: list[Target], recipe: Recipe, chunk_bytes: int) -> list[int]:
    """Say how much every step reads for itself, beside the pass that writes the artifact.

    Args:
        targets: The tensors that the job changes, in the order of the files.
        recipe: What it does to them.
        chunk_bytes: The size of its chunks: what is longer is looked at to be measured first.

    Returns:
        Bytes by step.
    """
    walk = _Walk(targets, recipe, chunk_bytes)
    for target in targets:
        walk.look_at(target, len(recipe.steps))
        is_cut = walk.shapes[target.name] in {"panel", "pieces"}
        if target.scheme is not None and is_cut and not target.group_size:
            walk.found[-1] += target.matrix.tensor.nbytes
    return walk.found


class _Walk:
    def __init__(self, targets: list[Target], recipe: Recipe, chunk_bytes: int) -> None:
        self.found = [0] * len(recipe.steps)
        self.shapes = {target.name: extent_of(target, chunk_bytes).shape for target in targets}
        self._targets = targets
        self._recipe = recipe
        self._wide = [is_wide(index, recipe, targets) for index in range(len(recipe.steps))]
        self._measured: set[tuple[int, str]] = set()

    def look_at(self, target: Target, limit: int) -> None:
        """Look at a tensor once, as the steps before `limit` leave it."""
        for index in target.prune_steps:
            if index < limit:
                self._measure_whole(index, target)
                self.found[index] += (
                    self._looks_at_parts(index, target) * target.matrix.tensor.nbytes
                )

    def _measure_whole(self, index: int, target: Target) -> None:
        """Look at all that a step counts its weights over, the first time that it matters."""
        step = self._step(index)
        key = (index, "" if step.scope == "global" else target.name)
        is_whole = step.structure == "unstructured" and step.scope != "row"
        is_whole = is_whole and not step.is_calibrated
        if not is_whole or key in self._measured or step.method == "random":
            return
        self._measured.add(key)
        counted = self._targets if step.scope == "global" else [target]
        elements = sum(t.matrix.tensor.elements for t in counted if index in t.prune_steps)
        for _ in range(self._looks(index, target, elements)):
            for chosen in counted:
                self._count(index, chosen)

    def _count(self, index: int, target: Target) -> None:
        is_counted = index in target.prune_steps
        earlier = (self._step(i) for i in target.prune_steps if i < index)
        if is_counted or any(
            s.structure == "unstructured" and s.scope == "global" for s in earlier
        ):
            self.look_at(target, index)
            self.found[index] += target.matrix.tensor.nbytes * is_counted

    def _looks_at_parts(self, index: int, target: Target) -> int:
        """Count the looks that measure a row or a column on its own, or share ties among them."""
        step, shape = self._step(index), self.shapes[target.name]
        if step.structure != "unstructured" or step.is_calibrated:
            return 0
        if step.scope != "row":
            return 1 if shape == "panel" else 0
        if shape == "panel":
            return self._key_bits(index, target) + 1
        is_read = shape == "pieces" and step.method != "random"
        return self._looks(index, target, target.matrix.inputs) if is_read else 0

    def _looks(self, index: int, target: Target, elements: int) -> int:
        is_any = pruned_count(self._step(index).sparsity or 0.0, elements)
        return _LOOKS[self._key_bits(index, target)] if is_any else 0

    def _key_bits(self, index: int, target: Target) -> int:
        if self._step(index).method == "random":
            return 32
        return 31 if self._wide[index] else 8 * target.itemsize - 1

    def _step(self, index: int) -> PruneStep:
        step = self._recipe.steps[index]
        assert isinstance(step, PruneStep)  # noqa: S101 - selection lists prune steps alone
        return step
