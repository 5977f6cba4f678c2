"""A checkpoint in, a smaller checkpoint out: one streaming pass in constant memory."""

import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from engine.cut_reading import Kept
from engine.importance import choose_kept
from engine.inspection import find_module_kinds
from engine.journal import Journal, fingerprint_of
from engine.ledger import StepEntry, count_planned
from engine.memory import MemoryMeter
from engine.pressing import press
from engine.progress import Progress, Ticker
from engine.rehearsal import rehearse, settle_plan
from engine.reporting import build_report
from engine.room import require_room
from engine.side_files import copy_side_files
from engine.source import Source
from jobs.checkpoint import open_checkpoint
from jobs.recipe import ENGINE_VERSION, Recipe
from jobs.report import Report
from planning.calibrated_files import calibrated_files
from planning.memory_model import Levels
from planning.module_kinds import ModuleKinds
from planning.plan import Plan, make_plan
from planning.prediction import predict, refuse_overruns
from planning.shrinking import shrink
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
    journal: Path | None = None,
    writes_back: bool = False,
    calibrated: Path | None = None,
) -> Report:
    """Shrink, prune and quantize a checkpoint, writing the artifact as it goes.

    Like a copy it does not wait for the disk; whoever needs the artifact to be there after a loss
    of power syncs its files, and says `writes_back`.

    Args:
        model_folder: The checkpoint; it is only read.
        artifact_folder: A folder for the artifact, which is empty unless there is a journal. The
            manifest is the caller's.
        recipe: What to do.
        device: Where to compute. The artifact has the same bytes whichever it is.
        on_progress: Told how far the job is, a few hundred times at most.
        chunk_bytes: How much of a tensor each thread has in memory at one time, unless the budget
            wants less. The artifact is the same whatever it is.
        threads: How many threads work, unless the budget wants fewer; by default one per
            processor, up to `MOST_THREADS`. The artifact is the same whatever it is.
        idle_bytes: What a plan took this process to hold before the job, so that the job keeps to
            that plan; by default it is measured.
        journal: A file beside that folder where it is written down how far the job is. Where it is
            there already, a killed attempt's, what that one wrote of the same job is kept, and
            everything else in the folder removed.
        writes_back: Have the disk begin with each file when that is complete, so that a caller who
            waits for the disk afterwards waits less. It takes some of the job's own time.
        calibrated: Where a calibration of the same recipe wrote what data decided about.

    Returns:
        Everything measured. Equal models and recipes give artifacts of equal bytes, however many
        attempts it took. What was counted is counted over what all attempts contributed to the
        artifact; times and memory of the process are this attempt's.

    Raises:
        Problem: The checkpoint cannot be read, is already quantized or holds a value that is not
            finite; nothing would change; the output format cannot hold the result; it would take
            more than its budget, or more than the disk has.
    """
    started = time.perf_counter()
    threads = threads or min(len(os.sched_getaffinity(0)), MOST_THREADS)
    entries = [StepEntry() for _ in recipe.steps]
    with MemoryMeter() as meter:
        plan, kinds = _plan(model_folder, recipe, on_progress)
        inspected = kinds.peak_bytes if kinds else None
        idle_bytes = idle_bytes or meter.idle.resident_peak_bytes
        levels = Levels(
            idle_bytes, inspected or 0, threads, is_inspected=True, has_device=device == "cuda"
        )
        prediction = predict(plan, levels, chunk_bytes)
        refuse_overruns(prediction, recipe.budget)
        # Always anew: what an attempt before has written counts only for those that this one keeps.
        kept = choose_kept(plan, prediction.buffers, entries, on_progress, calibrated)
        job = _fingerprint(plan, prediction.buffers.chunk_bytes, calibrated, kept)
        files = Source(plan.model, calibrated, plan.shrinkage, kept)
        with files as source, Journal(journal, job, artifact_folder) as book:
            errors = rehearse(plan, prediction, source, book, entries, on_progress)
            settled = settle_plan(plan, kinds, prediction, errors)
            plan = settled.plan
            require_room(artifact_folder, plan.artifact_bytes)
            folders = source, artifact_folder
            pressed = press(
                plan, prediction.buffers, device, folders, book, entries, on_progress,
                writes_back=writes_back,
            )  # fmt: skip
        count_planned(plan, entries)
        meter.sample()
        _write_the_rest(plan, artifact_folder)
    seconds = time.perf_counter() - started
    memory = (meter, pressed.device_memory, inspected)
    counted = (entries, pressed.tensors, book.reached)
    return build_report(settled, prediction, counted, kept, memory, seconds)


def _plan(
    model_folder: Path, recipe: Recipe, on_progress: Callable[[Progress], None]
) -> tuple[Plan, ModuleKinds | None]:
    ticker = Ticker(on_progress, Progress("inspect", 1, len(recipe.steps), 0, 1, "tensors"))
    model = open_checkpoint(model_folder)
    shrinkage = shrink(model, recipe)
    checkpoint = shrinkage.checkpoint if shrinkage else model
    kinds = find_module_kinds(checkpoint)
    plan = make_plan(checkpoint, kinds, recipe, shrinkage=shrinkage)
    ticker.advance(1)
    return plan, kinds


def _fingerprint(plan: Plan, chunk_bytes: int, calibrated: Path | None, kept: Kept) -> str:
    """Tell the job from others by all that decides which tasks it has and what they write."""

    def parts() -> Iterator[object]:
        yield version("modelpress"), ENGINE_VERSION, chunk_bytes, plan.recipe
        for shard in plan.shards:
            status = (plan.checkpoint.folder / shard.source.name).stat()
            yield shard.source.name, status.st_size, status.st_mtime_ns, shard.header
            yield from shard.placements
        for file in calibrated_files(calibrated):
            yield file.path.name, file.path.stat().st_mtime_ns, file.kind, file.tensors
        for name, units in kept.items():
            yield name, units.tobytes()

    return fingerprint_of(parts())


def _write_the_rest(plan: Plan, folder: Path) -> None:
    copy_side_files(plan.checkpoint.folder, folder, plan.side_files)
    for name, text in plan.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
