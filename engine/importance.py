"""Which heads and channels a shrink step keeps: those that can change the model's answer most.

What a channel adds to the residual stream is its activation times a column of the MLP's second
weight, and its activation is bounded by the norm of its row in the first one, times that in the
other where there is a gate. So its importance is the product of those norms. A head adds a mean of
its values, weighted by attention, times its columns of the output projection: the norms of these
two bound it, whatever queries and keys say. Heads that share keys and values are judged together.

The groups of weights are those of LLM-Pruner (Ma et al., 2023, arXiv:2305.11627, section 3.1). It
sums the importances of a group's weights; their product, unlike the sum, does not change where one
weight of a group is multiplied by what another is divided by, which changes no answer either.

Where all layers keep the same heads, because one table of biases has a column for each head of them
all (T5), what a head may add in one layer is added to what it may in the others.

Where a calibration has run the model, the norm of what a channel or head puts out is no bound but
was measured: times that of the columns that take it, it is the importance by activation, which is
that of Wanda (Sun et al., 2023, arXiv:2306.11695, section 3) for all weights of a column together.
By Taylor, the calibration has found the importance itself (`calibration.gradients`).

Dimension key: U heads or channels of one layer.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import float_kernels, importance_kernels
from engine.compilation import Singles, Tallies
from engine.crew import Bell, Crew, Settlement, Task
from engine.cut_reading import Kept, Positions
from engine.kernels import ProcessorKernels
from engine.ledger import StepEntry
from engine.measured_importance import MeasuredImportance
from engine.progress import Progress, Ticker
from engine.source import Source
from engine.workbench import Workbench
from jobs.problems import Problem
from jobs.safetensors_header import DTYPE_BYTES
from planning.cuts import Cut
from planning.plan import Plan
from planning.working_set import CUT_BYTES, WorkingSet


def choose_kept(
    plan: Plan,
    buffers: WorkingSet,
    entries: list[StepEntry],
    on_progress: Callable[[Progress], None],
    calibrated: Path | None = None,
) -> Kept:
    """Choose which heads and channels of every layer are kept, where the recipe shrinks.

    Args:
        plan: What is to be done.
        buffers: The memory to do it in.
        entries: Where the cost of each step is counted.
        on_progress: Told how far it is, as phase ``score``.
        calibrated: Where a calibration wrote what it found, where data decide.

    Returns:
        Those with the largest importance, in their order; of equals the first ones. The same on
        every machine and for any number of threads.

    Raises:
        Problem: `non_finite_weight`, `invalid_checkpoint`.
    """
    step = plan.recipe.shrink_step
    if plan.shrinkage is None or step is None:
        return {}
    measured = MeasuredImportance(calibrated)
    if step.importance == "taylor":
        groups = plan.shrinkage.groups
        return {g.name: _best(measured.read(g.name, g.count), g.kept) for g in groups}
    total, steps = plan.shrinkage.scored_bytes, len(plan.recipe.steps)
    ticker = Ticker(on_progress, Progress("score", 1, steps, 0, total, "bytes"))
    inputs = measured if step.importance == "activation" else None
    choice = _Choice(plan.shrinkage.cuts.values(), entries[0], ticker, inputs)
    benches = [Workbench(buffers.per_thread, ProcessorKernels()) for _ in range(buffers.threads)]
    with Source(plan.model) as source:
        Crew(benches, Bell()).run(choice.tasks(source))
    return choice.kept


class _Choice:
    """Multiplies what was found of the tensors of a group, and keeps the best of it."""

    def __init__(
        self,
        cuts: Iterable[Cut],
        entry: StepEntry,
        ticker: Ticker,
        inputs: MeasuredImportance | None,
    ) -> None:
        self.kept: dict[str, Positions] = {}
        self.inputs = inputs
        self._cuts = [cut for cut in cuts if cut.is_scored]
        self._entry = entry
        self._ticker = ticker
        self._missing = Counter(cut.group.name for cut in self._cuts)
        #: By group, what is multiplied in each layer.
        self._factors: dict[str, dict[str, dict[tuple[str, int], Tallies]]] = {}

    def tasks(self, source: Source) -> Iterator[Task]:
        """Make a task for every tensor whose weights count."""
        for cut in self._cuts:
            yield _Scoring(source, cut, self)

    def take(self, cut: Cut, found: dict[int, Tallies], seconds: float) -> None:
        """Take the squared norms of one tensor's parts, by the number of the part, [U] each."""
        group = cut.group
        factors = self._factors.setdefault(group.name, {}).setdefault(cut.block, {})
        # A bias belongs to its weight's rows.
        module = cut.source.name.rpartition(".")[0]
        for part, squares in found.items():
            factors[module, part] = factors.get((module, part), 0.0) + squares
        self._missing[group.name] -= 1
        if not self._missing[group.name]:
            layers = self._factors.pop(group.name).values()
            products = [np.prod(list(found.values()), axis=0) for found in layers]
            self.kept[group.name] = _best(np.sum(products, axis=0), group.kept)
        self._entry.seconds += seconds
        self._entry.bytes_read += cut.source.nbytes
        self._ticker.advance(cut.source.nbytes)


@dataclass(frozen=True)
class _Scoring:
    """A tensor whose squares are summed."""

    source: Source
    cut: Cut
    choice: _Choice

    def run(self, bench: Workbench) -> Settlement:
        tensor, cut = self.cut.source, self.cut
        is_by_row = cut.axis == 0 and len(tensor.shape) > 1
        sums = bench.take("squares", (tensor.shape[cut.axis],), np.float64)
        sums[:] = 0
        seconds = 0.0
        for row, column, block in self._blocks(bench):
            started = time.perf_counter()
            rows, columns = block.shape
            if is_by_row:
                importance_kernels.add_rows(block.reshape(-1), columns, sums[row : row + rows])
            else:
                over = sums[column : column + columns]
                importance_kernels.add_columns(block.reshape(-1), over)
            seconds += time.perf_counter() - started
        if not np.isfinite(sums).all():
            raise _non_finite(cut, int(np.argmin(np.isfinite(sums))))
        if self.choice.inputs is not None:
            sums *= self.choice.inputs.read(tensor.name, sums.size)
        found = {}
        for i, part in enumerate(cut.parts):
            if part.is_scored:
                found[i] = np.empty(cut.group.count)
                importance_kernels.add_units(sums[part.start :], part.width, found[i])
        return lambda: self.choice.take(cut, found, seconds)

    def _blocks(self, bench: Workbench) -> Iterator[tuple[int, int, Singles]]:
        """Read the tensor as float32, in blocks that do not depend on the budget."""
        tensor = self.cut.source
        itemsize = DTYPE_BYTES[tensor.dtype]
        columns = tensor.shape[-1]
        file_rows = tensor.elements // max(1, columns)
        width = min(columns, CUT_BYTES // itemsize)
        height = CUT_BYTES // itemsize // width if width == columns else 1
        for row in range(0, file_rows, height):
            rows = min(height, file_rows - row)
            for column in range(0, columns, width):
                shape = rows, min(width, columns - column)
                bits = bench.take("cut", shape, f"u{itemsize}")
                place = (row * columns + column) * itemsize
                self.source.copy_to(bits.reshape(-1).view(np.uint8), tensor.name, place)
                widened = bench.take("widened", shape, np.uint32)
                kind = float_kernels.KINDS[tensor.dtype]
                float_kernels.widen(bits.reshape(-1), kind, widened.reshape(-1))
                yield row, column, widened.view(np.float32)


def _best(importance: Tallies, count: int) -> Positions:
    best = np.argsort(-importance, kind="stable")[:count]
    return np.sort(best).astype(np.int64)


def _non_finite(cut: Cut, place: int) -> Problem:
    name = cut.source.name
    where = "column" if cut.axis else "row"
    return Problem(
        "non_finite_weight",
        f"Tensor {name!r} holds a NaN or an infinity in {where} {place}.",
        extra={"tensor": name, where: place},
    )
