"""Rounds every weight on trial, so that what would lose most can stay float: one pass, no writing.

Only the rounding counts: its error is taken relative to the weight as pruning leaves it, because
what pruning takes away is lost whether a weight stays float or not.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from engine.crew import Bell, Crew, Settlement, Task
from engine.gatherings import Gathering
from engine.journal import Journal, Record, steps_of
from engine.kernels import ProcessorKernels
from engine.ledger import StepEntry, TensorEntry
from engine.looks import Look, Seen
from engine.progress import Progress, Ticker
from engine.pruning import Pruning
from engine.relays import Relays
from engine.rounding import round_chunk
from engine.rounding_kernels import TALLIES
from engine.source import Source
from engine.workbench import Workbench
from planning.aims import Settled, refuse_target, settle
from planning.extents import extent_of
from planning.module_kinds import ModuleKinds
from planning.plan import Plan
from planning.prediction import Prediction, refuse_overruns
from planning.selection import Target
from planning.working_set import WorkingSet


def settle_plan(
    plan: Plan, kinds: ModuleKinds | None, prediction: Prediction, errors: Mapping[str, float]
) -> Settled:
    """Decide what stays float, where the recipe aims at a size or an error.

    Args:
        plan: The plan that quantizes all it can.
        kinds: The model's modules.
        prediction: What that was predicted to cost.
        errors: What was measured by `rehearse`.

    Returns:
        The plan to execute; the same plan where the recipe does not aim.

    Raises:
        Problem: `disk_budget_exceeded`; or as `planning.aims.settle`.
    """
    if plan.recipe.aimed_step is None:
        return Settled(plan)
    settled = settle(plan, kinds, errors)
    exact = replace(prediction, artifact_bytes=settled.plan.artifact_bytes)
    refuse_overruns(exact, plan.recipe.budget)
    return settled


def rehearse(
    plan: Plan,
    prediction: Prediction,
    source: Source,
    journal: Journal,
    entries: Sequence[StepEntry],
    on_progress: Callable[[Progress], None],
) -> dict[str, float]:
    """Measure what rounding each quantized weight would lose, where the recipe aims at something.

    Args:
        plan: What would be done.
        prediction: What that was predicted to cost, with the buffers to use.
        source: The model's files.
        journal: Knows it where an attempt before this one measured it, and is told of it.
        entries: Where the cost of each step is counted.
        on_progress: Told how far it is, as phase ``measure``.

    Returns:
        By name, the relative RMSE; empty where the recipe does not aim. It is computed on the
        processor whatever the device, so that the choice that is made of it does not depend on
        that.

    Raises:
        Problem: `non_finite_weight`, `invalid_checkpoint`; or as `planning.aims.refuse_target`.
    """
    if plan.recipe.aimed_step is None:
        return {}
    if journal.reached is not None:
        return journal.reached.errors
    refuse_target(plan)
    found = try_rounding(plan, prediction.buffers, source, entries, on_progress)
    errors = {name: entry.relative_rmse for name, entry in found.items()}
    journal.write(Record(errors=errors, steps=steps_of(entries)))
    return errors


def try_rounding(
    plan: Plan,
    buffers: WorkingSet,
    source: Source,
    entries: Sequence[StepEntry],
    on_progress: Callable[[Progress], None],
) -> dict[str, TensorEntry]:
    """Round every weight that a plan quantizes, and write nothing.

    Args:
        plan: What would be done.
        buffers: The memory to do it in.
        source: The model's files.
        entries: Where the cost of each step is counted.
        on_progress: Told how far it is, as phase ``measure``.

    Returns:
        By name, what rounding did to each: its squares and those of its errors.

    Raises:
        Problem: `non_finite_weight`, `invalid_checkpoint`.
    """
    recipe = plan.recipe
    targets = list(plan.selection.targets.values())
    extents = {target.name: extent_of(target, buffers.chunk_bytes) for target in targets}
    total = sum(target.matrix.tensor.nbytes for target in targets)
    steps = len(recipe.steps)
    ticker = Ticker(on_progress, Progress("measure", steps, steps, 0, total, "bytes"))
    bell = Bell()
    pruning = Pruning(source, recipe, targets, extents, entries, bell, on_progress)
    found = {target.name: TensorEntry() for target in targets}
    benches = [Workbench(buffers.per_thread, ProcessorKernels()) for _ in range(buffers.threads)]
    Crew(benches, bell).run(_trials(targets, pruning, found, entries, ticker))
    return {target.name: found[target.name] for target in targets if target.scheme is not None}


def _trials(
    targets: Sequence[Target],
    pruning: Pruning,
    found: Mapping[str, TensorEntry],
    entries: Sequence[StepEntry],
    ticker: Ticker,
) -> Iterator[Task]:
    totals: Relays = {}
    for target in targets:
        make = partial(_Trial, found[target.name], entries[-1], ticker)
        # Those that stay float are looked at too: global steps count along all of them.
        yield from pruning.look_at(target, len(entries), totals, make, with_peaks=True)


@dataclass(frozen=True)
class _Trial:
    """A chunk that is rounded and forgotten."""

    entry: TensorEntry
    step: StepEntry
    ticker: Ticker
    look: Look
    peaks: Gathering | None

    def run(self, bench: Workbench) -> Settlement:
        pruned = self.look.take(bench).after
        tallies = np.zeros(TALLIES)
        started = time.perf_counter()
        if self.look.target.scheme is not None:
            round_chunk(self.look, Seen(pruned, pruned, {}), self.peaks, bench, tallies)
        seconds = time.perf_counter() - started
        return lambda: self._settle(seconds, tallies)

    def _settle(self, seconds: float, tallies: npt.NDArray[np.float64]) -> None:
        self.step.seconds += seconds
        self.step.bytes_read += self.look.nbytes
        self.entry.squared_error += float(tallies[2])
        self.entry.squares += float(tallies[3])
        self.ticker.advance(self.look.nbytes)
