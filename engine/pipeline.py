"""A checkpoint in, a smaller checkpoint out: one streaming pass in constant memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from engine.inspection import find_module_kinds
from engine.kernels import kernels_for
from engine.ledger import StepEntry
from engine.memory import MemoryMeter
from engine.progress import Progress, Ticker
from engine.pruning import Pruning
from engine.reporting import build_report
from engine.side_files import copy_side_files, write_text
from engine.source import Source
from engine.writer import Writer
from jobs.checkpoint import open_checkpoint
from jobs.recipe import Recipe
from jobs.report import Report
from planning.plan import make_plan

__all__ = ["CHUNK_BYTES", "Progress", "compress"]

#: How much of a tensor is in memory at one time: large enough to hide the cost of a call, small
#: enough for a processor's cache.
CHUNK_BYTES = 1024**2


def compress(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    on_progress: Callable[[Progress], None],
    chunk_bytes: int = CHUNK_BYTES,
) -> Report:
    """Prune and quantize a checkpoint, writing the artifact as it goes.

    Args:
        model_folder: The checkpoint; it is only read.
        artifact_folder: An empty folder for the artifact; what it holds after a failure is of no
            use. The manifest is the caller's.
        recipe: What to do.
        device: Where to compute. The artifact has the same bytes whichever it is.
        on_progress: Told how far the job is, a few hundred times at most.
        chunk_bytes: How much of a tensor is in memory at one time; one output channel may be more.
            The artifact is the same whatever it is.

    Returns:
        Everything measured. Equal models and recipes give artifacts of equal bytes.

    Raises:
        Problem: The checkpoint cannot be read, is already quantized or holds a value that is not
            finite; nothing would change; the output format cannot hold the result; it is larger
            than the disk budget or the disk.
    """
    started = time.perf_counter()
    steps = len(recipe.steps)
    entries = [StepEntry() for _ in recipe.steps]
    with MemoryMeter() as meter:
        inspection = Ticker(on_progress, Progress("inspect", 1, steps, 0, 1, "tensors"))
        checkpoint = open_checkpoint(model_folder)
        kinds = find_module_kinds(checkpoint)
        plan = make_plan(checkpoint, kinds, recipe)
        inspection.advance(1)
        kernels = kernels_for(device)
        with Source(checkpoint, chunk_bytes, kernels) as source:
            targets = list(plan.selection.targets.values())
            pruning = Pruning(source, recipe, targets, entries, on_progress)
            total = sum(shard.source.header.data_bytes for shard in plan.shards)
            ticker = Ticker(on_progress, Progress("compress", steps, steps, 0, total, "bytes"))
            writer = Writer(source, pruning.begin(steps), entries, meter, ticker)
            for shard in plan.shards:
                writer.write_shard(shard, artifact_folder)
        copy_side_files(model_folder, artifact_folder, plan.side_files)
        for name, text in plan.texts.items():
            write_text(artifact_folder / name, text)
        _sync_folder(artifact_folder)
    seconds = time.perf_counter() - started
    memory = (meter, kernels.memory(), kinds.peak_bytes if kinds else None)
    counted = (entries, writer.tensors)
    return build_report(plan, counted, memory, seconds)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
