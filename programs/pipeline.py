"""A program in, a smaller program out: its archive read and written as data, tensor by tensor."""

import shutil
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

from engine.ledger import StepEntry
from engine.measured_importance import MeasuredImportance
from engine.memory import MemoryMeter
from engine.progress import Progress, Ticker
from engine.room import require_room
from jobs.program import open_program
from jobs.program_archive import PROGRAM_NAME, ArchiveWriter, write_archive
from jobs.recipe import Evaluate, Recipe
from jobs.report import Report
from jobs.steps import QuantizeStep, ShrinkStep
from planning.memory_model import Levels
from planning.prediction import refuse_overruns
from planning.program_plan import ProgramPlan, Written, make_program_plan
from planning.program_prediction import predict_program
from programs.channels import Kept, choose_channels
from programs.reporting import build_report
from programs.rewriting import rewrite
from programs.treatment import Treated, Treatment
from programs.values import ProgramFile, Raw


def compress_program(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    *,
    on_progress: Callable[[Progress], None],
    levels: Levels | None = None,
    dataset: Path | None = None,
    calibrated: Path | None = None,
) -> tuple[Report, Kept]:
    """Shrink, prune and quantize a program.

    Args:
        model_folder: The program; it is only read.
        artifact_folder: Where the artifact goes; what is in there is removed.
        recipe: What to do.
        on_progress: Told how far the job is.
        levels: What a plan took this process to hold; by default it is measured.
        dataset: What statistics of BatchNorms are taken from anew where channels went; None leaves
            those of the channels that stay as they are.
        calibrated: Where a calibration wrote what it found, where data decide.

    Returns:
        Everything measured, and by tensor and dimension the places that were kept. Equal programs
        and recipes give artifacts of equal bytes.

    Raises:
        Problem: The program cannot be read or holds a value that is not finite; nothing would
            change; it would take more than its budget, or more than the disk has.
    """
    started = time.perf_counter()
    entries = [StepEntry() for _ in recipe.steps]
    with MemoryMeter() as meter:
        program = open_program(model_folder / PROGRAM_NAME)
        plan = make_program_plan(program, recipe)
        known = levels or Levels(meter.idle.resident_peak_bytes, 0, 1)
        prediction = predict_program(plan, known)
        refuse_overruns(prediction, recipe.budget)
        for path in artifact_folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        require_room(artifact_folder, plan.artifact_bytes)
        file = ProgramFile(program)
        began = time.perf_counter()
        kept = choose_channels(program, plan.shrink, file) if plan.shrink else {}
        entries[0].seconds += time.perf_counter() - began
        treatment = Treatment(plan, file, kept, entries, MeasuredImportance(calibrated))
        ticker = Ticker(
            on_progress,
            Progress("compress", len(entries), len(entries), 0, len(plan.written), "tensors"),
        )
        target = artifact_folder / PROGRAM_NAME
        _write(plan, treatment, file, target, ticker)
        if plan.shrink and dataset is not None:
            _renew_statistics(target, dataset, recipe.evaluate or Evaluate())
        meter.sample()
    _count(plan, entries, target)
    seconds = time.perf_counter() - started
    report = build_report(plan, prediction, (entries, treatment.tensors), meter, seconds)
    return report, kept


def _write(
    plan: ProgramPlan,
    treatment: Treatment,
    file: ProgramFile,
    target: Path,
    ticker: Ticker,
) -> None:
    treated: dict[str, Treated] = {}

    def values_of(one: Written) -> Raw:
        if one.source not in treated:
            treated.clear()
            treated[one.source] = treatment.treat(one.source)
        found = treated[one.source]
        return found.values if not one.is_scale or found.scales is None else found.scales

    def fill(writer: ArchiveWriter) -> None:
        for entry, group in groupby(plan.written, key=lambda one: one.entry):
            ones = list(group)
            first = ones[0]
            if treatment.is_changed(first.source):
                raw = np.ascontiguousarray(values_of(first)).reshape(-1).view(np.uint8)
            else:
                raw = file.entry(plan.program.tensors[first.source].entry)
            writer.add(entry, [raw.data], len(raw))
            ticker.advance(len(ones))
        for name, text in plan.texts.items():
            writer.add(name, [text], len(text))

    write_archive(target, fill)


def _renew_statistics(path: Path, dataset: Path, wanted: Evaluate) -> None:
    # torch takes a second and 300 MB, which other jobs need not pay.
    from programs.statistics import find_statistics  # noqa: PLC0415

    found = find_statistics(path, dataset, wanted)
    if not found:
        return
    draft = path.rename(path.with_suffix(".draft"))
    program = open_program(draft)
    renewed = {
        program.tensors[name].entry: values.view(np.uint8).data for name, values in found.items()
    }
    rewrite(program, path, renewed.get)
    draft.unlink()


def _count(plan: ProgramPlan, entries: list[StepEntry], target: Path) -> None:
    """Tell the entries what the plan said and the job has done by now, and hold it to its disk."""
    for entry, step in zip(entries, plan.recipe.steps, strict=True):
        if isinstance(step, ShrinkStep) and plan.shrink is not None:
            entry.tensors_changed = len(plan.shrink.shapes)
        elif isinstance(step, QuantizeStep):
            targets = plan.selection.targets.values()
            entry.tensors_changed = sum(target.scheme is not None for target in targets)
    entries[-1].bytes_read += plan.program.file_bytes
    entries[-1].bytes_written += target.stat().st_size
