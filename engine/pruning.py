"""The prune steps of a recipe over a checkpoint that is never in memory.

An eraser that needs a threshold has it measured first: by a pass over the one tensor just before
that is compressed, or over all tensors for ``scope: global``. Every pass applies the earlier steps
on the way, so each step sees what those before it left.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

from engine.compilation import Bits
from engine.erasers import (
    ChannelDrawEraser,
    ChannelEraser,
    DrawEraser,
    Eraser,
    GroupEraser,
    ThresholdEraser,
)
from engine.ledger import StepEntry
from engine.magnitudes import keys_of, wide_keys_of
from engine.progress import Progress, Ticker
from engine.source import Source
from engine.thresholds import Threshold, find_threshold
from jobs.recipe import PruneStep, Recipe
from planning.matrices import pruned_count
from planning.selection import Target


class Pruning:
    """Makes the erasers of every tensor, measuring what they need to know.

    Args:
        source: The model's files.
        recipe: Whose prune steps.
        targets: What they prune, in the order of the files.
        entries: Where the cost of each step is counted.
        report: Told how far a pass over all tensors is.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        targets: Sequence[Target],
        entries: Sequence[StepEntry],
        report: Callable[[Progress], None],
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._targets = targets
        self._entries = entries
        self._report = report
        self._thresholds: dict[tuple[int, str], Threshold] = {}

    def begin(self, limit: int) -> "PruningPass":
        """Start a pass over the targets, in their order, under the steps before `limit`."""
        return PruningPass(self, limit)

    def is_global(self, index: int) -> bool:
        """Whether a step counts its weights over all tensors together."""
        step = self._step(index)
        return step.structure == "unstructured" and step.scope == "global"

    def local_eraser(self, index: int, target: Target, earlier: Sequence[Eraser]) -> Eraser:
        """Make the eraser of a step that looks at one tensor.

        Args:
            index: Which step.
            target: The tensor.
            earlier: The erasers of the steps before, as they stand at the tensor's beginning.

        Returns:
            An eraser for the tensor's first block.
        """
        step, matrix = self._step(index), target.matrix
        seed = _seed(step.seed, index, target.name)
        is_random = step.method == "random"
        if step.structure != "unstructured":
            group = int(step.structure[-1])
            return GroupEraser(group, matrix.positions, seed if is_random else None)
        sparsity = step.sparsity or 0.0
        if step.scope == "row":
            count = pruned_count(sparsity, matrix.inputs)
            return ChannelDrawEraser(seed, count) if is_random else ChannelEraser(count)
        elements = matrix.tensor.elements
        count = pruned_count(sparsity, elements)
        if is_random:
            return DrawEraser(seed, elements, count)
        is_wide = matrix.tensor.dtype == "F32"
        threshold = self._threshold(
            index,
            target.name,
            lambda: self._keys(index, target, [copy.copy(e) for e in earlier], is_wide=is_wide),
            count,
            is_wide=is_wide,
        )
        return ThresholdEraser(threshold.key, threshold.ties, is_wide)

    def global_eraser(self, index: int) -> Eraser:
        """Make the eraser of a step that looks at all tensors, for the first block of the first."""
        step = self._step(index)
        chosen = [target.matrix.tensor for target in self._targets if index in target.prune_steps]
        elements = sum(tensor.elements for tensor in chosen)
        count = pruned_count(step.sparsity or 0.0, elements)
        if step.method == "random":
            return DrawEraser(_seed(step.seed, index, ""), elements, count)
        dtypes = {tensor.dtype for tensor in chosen}
        is_wide = dtypes not in ({"BF16"}, {"F16"})
        # Float32 order takes two looks at each.
        total = sum(tensor.nbytes for tensor in chosen) * (2 if is_wide else 1)
        ticker = Ticker(
            self._report,
            Progress("measure", index + 1, len(self._recipe.steps), 0, total, "bytes"),
        )
        threshold = self._threshold(
            index,
            "",
            lambda: self._all_keys(index, ticker, is_wide=is_wide),
            count,
            is_wide=is_wide,
        )
        return ThresholdEraser(threshold.key, threshold.ties, is_wide)

    def _step(self, index: int) -> PruneStep:
        step = self._recipe.steps[index]
        assert isinstance(step, PruneStep)  # noqa: S101 - selection lists prune steps alone
        return step

    def _threshold(
        self,
        index: int,
        name: str,
        stream: Callable[[], Iterator[Bits]],
        count: int,
        *,
        is_wide: bool,
    ) -> Threshold:
        if (index, name) not in self._thresholds:
            started = time.perf_counter()
            self._thresholds[index, name] = find_threshold(stream, count, is_wide=is_wide)
            self._entries[index].seconds += time.perf_counter() - started
        return self._thresholds[index, name]

    def _keys(
        self, index: int, target: Target, erasers: Sequence[Eraser], *, is_wide: bool
    ) -> Iterator[Bits]:
        dtype, bench = target.matrix.tensor.dtype, self._source.bench
        for _, bits in self._source.read(target):
            self._entries[index].bytes_read += bits.nbytes
            for eraser in erasers:
                eraser.erase(bits, dtype, bench)
            yield wide_keys_of(bits, dtype, bench) if is_wide else keys_of(bits, bench)

    def _all_keys(self, index: int, ticker: Ticker, *, is_wide: bool) -> Iterator[Bits]:
        walk = self.begin(index)
        for target in self._targets:
            is_measured = index in target.prune_steps
            # An earlier global step must see every tensor, to know where among them it is.
            if is_measured or any(self.is_global(i) for i in target.prune_steps if i < index):
                erasers = [eraser for _, eraser in walk.erasers(target)]
                for keys in self._keys(index, target, erasers, is_wide=is_wide):
                    if is_measured:
                        ticker.advance(keys.size * target.itemsize)
                        yield keys


class PruningPass:
    """One pass over the targets, in the order of the files; each must be read to its end.

    Args:
        pruning: Makes the erasers.
        limit: Steps from this one on are left out.
    """

    def __init__(self, pruning: Pruning, limit: int) -> None:
        self._pruning = pruning
        self._limit = limit
        self._shared: dict[int, Eraser] = {}

    def erasers(self, target: Target) -> list[tuple[int, Eraser]]:
        """Give the next tensor's erasers with the index of their step, in order."""
        found: list[tuple[int, Eraser]] = []
        for index in target.prune_steps:
            if index >= self._limit:
                break
            if not self._pruning.is_global(index):
                earlier = [eraser for _, eraser in found]
                found.append((index, self._pruning.local_eraser(index, target, earlier)))
                continue
            if index not in self._shared:
                self._shared[index] = self._pruning.global_eraser(index)
            found.append((index, self._shared[index]))
        return found


def _seed(seed: int, index: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{index}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
