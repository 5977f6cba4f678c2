"""A checkpoint in, a smaller checkpoint out: one streaming pass in constant memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from engine.crew import Bell, Crew
from engine.inspection import find_module_kinds
from engine.kernels import kernels_for
from engine.ledger import StepEntry, count_pruned
from engine.memory import MemoryMeter
from engine.outputs import Outputs
from engine.progress import Progress, Ticker
from engine.pruning import Pruning
from engine.rehearsal import settle_plan
from engine.reporting import build_report
from engine.side_files import copy_side_files, write_text
from engine.source import Source
from engine.workbench import Workbench
from engine.writer import Writer
from jobs.checkpoint import open_checkpoint
from jobs.recipe import Recipe
from jobs.report import Report
from planning.extents import extent_of
from planning.memory_model import Levels
from planning.plan import make_plan
from planning.prediction import predict, refuse_overruns
from planning.working_set import CHUNK_BYTES, MOST_THREADS

__all__ = ["Progress", "compress"]


def compress(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    on_progress: Callable[[Progress], None],
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
    idle_bytes: int | None = None,
) -> Report:
    """Prune and quantize a checkpoint, writing the artifact as it goes.

    Args:
        model_folder: The checkpoint; it is only read.
        artifact_folder: An empty folder for the artifact; what it holds after a failure is of no
            use. The manifest is the caller's.
        recipe: What to do.
        device: Where to compute. The artifact has the same bytes whichever it is.
        on_progress: Told how far the job is, a few hundred times at most.
        chunk_bytes: How much of a tensor each thread has in memory at one time, unless the budget
            wants less. The artifact is the same whatever it is.
        threads: How many threads work, unless the budget wants fewer; by default one per
            processor, up to `MOST_THREADS`. The artifact is the same whatever it is.
        idle_bytes: What a plan took this process to hold before the job, so that the job keeps to
            that plan; by default it is measured.

    Returns:
        Everything measured. Equal models and recipes give artifacts of equal bytes.

    Raises:
        Problem: The checkpoint cannot be read, is already quantized or holds a value that is not
            finite; nothing would change; the output format cannot hold the result; it would take
            more than its budget, or more than the disk has.
    """
    started = time.perf_counter()
    threads = threads or min(len(os.sched_getaffinity(0)), MOST_THREADS)
    steps = len(recipe.steps)
    entries = [StepEntry() for _ in recipe.steps]
    with MemoryMeter() as meter:
        inspection = Ticker(on_progress, Progress("inspect", 1, steps, 0, 1, "tensors"))
        checkpoint = open_checkpoint(model_folder)
        kinds = find_module_kinds(checkpoint)
        plan = make_plan(checkpoint, kinds, recipe)
        inspection.advance(1)
        inspected = (kinds.peak_bytes if kinds else None) or 0
        levels = Levels(idle_bytes or meter.idle.resident_peak_bytes, inspected, threads)
        prediction = predict(plan, levels, chunk_bytes)
        refuse_overruns(prediction, recipe.budget)
        buffers = prediction.buffers
        benches = [
            Workbench(buffers.per_thread, kernels_for(device)) for _ in range(buffers.threads)
        ]
        bell = Bell()
        with Source(checkpoint) as source, Outputs(artifact_folder) as outputs:
            settled = settle_plan(plan, kinds, prediction, source, entries, on_progress)
            plan = settled.plan
            targets = list(plan.selection.targets.values())
            extents = {target.name: extent_of(target, buffers.chunk_bytes) for target in targets}
            pruning = Pruning(source, recipe, targets, extents, entries, bell, on_progress)
            total = sum(shard.source.header.data_bytes for shard in plan.shards)
            ticker = Ticker(on_progress, Progress("compress", steps, steps, 0, total, "bytes"))
            writer = Writer(source, outputs, pruning, entries, ticker)
            Crew(benches, bell).run(writer.tasks(plan.shards))
        count_pruned(recipe, targets, entries)
        meter.sample()
        copy_side_files(model_folder, artifact_folder, plan.side_files)
        for name, text in plan.texts.items():
            write_text(artifact_folder / name, text)
        _sync_folder(artifact_folder)
    seconds = time.perf_counter() - started
    memory = (meter, benches[0].kernels.memory(), kinds.peak_bytes if kinds else None)
    counted = (entries, writer.tensors)
    return build_report(settled, prediction, counted, memory, seconds)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
