"""Measures what rounding and shrinking would lose of a model, for recipes to be judged by."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.importance import choose_kept
from engine.inspection import find_module_kinds
from engine.ledger import StepEntry
from engine.memory import MemoryMeter
from engine.progress import Progress
from engine.rehearsal import try_rounding
from engine.source import Source
from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.problems import Problem
from jobs.recipe import ENGINE_VERSION, Budget
from jobs.sensitivities import Rounding, Sensitivities, Variant
from planning.memory_model import Levels
from planning.module_kinds import ModuleKinds
from planning.palette import Family, measuring_families
from planning.plan import Plan, make_plan
from planning.prediction import Prediction, predict, refuse_overruns
from planning.shrinking import shrink
from planning.working_set import MOST_THREADS

OnProgress = Callable[[Progress], None]


def measure(
    model_folder: Path,
    budget: Budget,
    *,
    on_progress: OnProgress,
    threads: int | None = None,
    idle_bytes: int | None = None,
) -> Sensitivities:
    """Round every weight of a checkpoint on trial, in each way that recipes are suggested of.

    Args:
        model_folder: The checkpoint; it is only read, once for every way.
        budget: What the process may hold.
        on_progress: Told how far it is, as phase ``measure``; its steps are the ways.
        threads: How many threads work, unless the budget wants fewer; by default one per
            processor, up to `MOST_THREADS`.
        idle_bytes: What a plan took this process to hold before; by default it is measured.

    Returns:
        Everything measured. A weight's error is what a job of that way finds in its own trial.

    Raises:
        Problem: The checkpoint cannot be read, is already quantized or holds a value that is not
            finite; it has no weight to round; it would take more than the budget.
    """
    started = time.perf_counter()
    threads = threads or min(len(os.sched_getaffinity(0)), MOST_THREADS)
    checkpoint = open_checkpoint(model_folder)
    families = list(measuring_families(checkpoint))
    found: list[Variant] = []
    peaks = [0]
    inspections = Inspections()
    with MemoryMeter() as meter:
        idle = idle_bytes or meter.idle.resident_peak_bytes
        for number, family in enumerate(families, start=1):
            plan = _plan(checkpoint, family, budget, inspections)
            if plan is None:
                continue
            levels = Levels(idle, inspections.peak_bytes, threads, is_inspected=True)
            prediction = predict(plan, levels)
            refuse_overruns(prediction, budget)
            peaks.append(prediction.host_peak_bytes)
            told = _told_as_step(on_progress, number, len(families))
            found.append(_measure(plan, prediction, family, told))
            meter.sample()
    held = meter.idle.resident_peak_bytes + inspections.peak_bytes
    return Sensitivities(
        engine_version=ENGINE_VERSION,
        variants=tuple(found),
        seconds=time.perf_counter() - started,
        predicted_peak_bytes=max(peaks),
        measured_peak_bytes=max(meter.peak.resident_peak_bytes, held),
    )


class Inspections:
    """Which module of a model is which, asked once for each width.

    Attributes:
        peak_bytes: Resident peak of the processes that were asked; 0 where the table told.
    """

    peak_bytes: int

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._known: dict[float | None, ModuleKinds | None] = {}

    def kinds(self, width: float | None, left: Checkpoint) -> ModuleKinds | None:
        """Give the modules of a model, or of what a width leaves of it."""
        if width not in self._known:
            kinds = self._known[width] = find_module_kinds(left)
            self.peak_bytes = max(self.peak_bytes, (kinds.peak_bytes or 0) if kinds else 0)
        return self._known[width]


def _plan(
    checkpoint: Checkpoint, family: Family, budget: Budget, inspections: Inspections
) -> Plan | None:
    """Plan the way of a family; None where the model has nothing for it."""
    recipe = family.measuring(budget)
    shrinkage = shrink(checkpoint, recipe)
    left = shrinkage.checkpoint if shrinkage else checkpoint
    try:
        return make_plan(left, inspections.kinds(family.width, left), recipe, shrinkage=shrinkage)
    except Problem as problem:
        if problem.code == "nothing_changed" and family.is_optional:
            return None
        raise


def _measure(
    plan: Plan, prediction: Prediction, family: Family, on_progress: OnProgress
) -> Variant:
    entries = [StepEntry() for _ in plan.recipe.steps]
    kept = choose_kept(plan, prediction.buffers, entries, on_progress)
    with Source(plan.model, None, plan.shrinkage, kept) as source:
        found = try_rounding(plan, prediction.buffers, source, entries, on_progress)
    return Variant(
        width=family.width,
        group_size=family.group_size,
        weights={
            name: Rounding(relative_rmse=entry.relative_rmse, energy=entry.squares)
            for name, entry in found.items()
        },
    )


def _told_as_step(on_progress: OnProgress, number: int, of: int) -> OnProgress:
    """Tell the progress of one way as that of one step of many."""
    return lambda progress: on_progress(replace(progress, phase="measure", step=number, steps=of))
