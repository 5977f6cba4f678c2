"""A checkpoint in, a smaller checkpoint out: one streaming pass in constant memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from engine.kernels import kernels_for
from engine.ledger import StepEntry
from engine.memory import MemoryMeter
from engine.module_kinds import ModuleKinds, read_module_kinds
from engine.plan import ShardPlan, plan_shards
from engine.progress import Progress, Ticker
from engine.pruning import Pruning
from engine.reporting import build_report
from engine.selection import Selection, select
from engine.side_files import (
    config_text,
    copy_side_files,
    find_side_files,
    index_text,
    loader_text,
    write_text,
)
from engine.source import Source
from engine.writer import Writer
from jobs.checkpoint import INDEX_NAME, Checkpoint, open_checkpoint
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.report import Report

__all__ = ["CHUNK_BYTES", "Progress", "compress"]

#: How much of a tensor is in memory at one time: large enough to hide the cost of a call, small
#: enough for a processor's cache.
CHUNK_BYTES = 1024**2

OutputFormat = Literal["compressed-tensors", "safetensors"]


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
        output_format = _output_format(checkpoint, recipe)
        config, names = checkpoint.config, checkpoint.tensors
        kinds = None if config is None else read_module_kinds(config, names)
        selection = select(checkpoint, kinds, recipe, output_format)
        shards = plan_shards(checkpoint, selection)
        texts = _texts(checkpoint, kinds, selection, shards, output_format)
        side_files = list(find_side_files(model_folder))
        _check_disk_budget(recipe, model_folder, shards, texts, side_files)
        inspection.advance(1)
        kernels = kernels_for(device)
        with Source(checkpoint, chunk_bytes, kernels) as source:
            targets = list(selection.targets.values())
            pruning = Pruning(source, recipe, targets, entries, on_progress)
            total = sum(shard.source.header.data_bytes for shard in shards)
            ticker = Ticker(on_progress, Progress("compress", steps, steps, 0, total, "bytes"))
            writer = Writer(source, pruning.begin(steps), entries, meter, ticker)
            for shard in shards:
                writer.write_shard(shard, artifact_folder)
        copy_side_files(model_folder, artifact_folder, side_files)
        for name, text in texts.items():
            write_text(artifact_folder / name, text)
        _sync_folder(artifact_folder)
    seconds = time.perf_counter() - started
    memory = (meter, kernels.memory(), kinds.peak_bytes if kinds else None)
    counted = (entries, writer.tensors)
    return build_report(
        checkpoint, recipe, selection, shards, output_format, counted, memory, seconds
    )


def _output_format(checkpoint: Checkpoint, recipe: Recipe) -> OutputFormat:
    is_quantized = any(step.op == "quantize" for step in recipe.steps)
    wanted = recipe.output.format
    if wanted == "auto":
        has_config = checkpoint.config is not None
        return "compressed-tensors" if has_config and is_quantized else "safetensors"
    if wanted == "compressed-tensors" and checkpoint.config is None:
        raise Problem(
            "output_unsupported",
            "compressed-tensors is for transformers folders, and there is no config.json. Leave "
            "output.format out: safetensors with a load.py fits this model.",
        )
    if wanted == "compressed-tensors" and not is_quantized:
        raise Problem(
            "output_unsupported",
            "compressed-tensors holds quantized models, and the recipe has no quantize step. Leave "
            "output.format out: the pruned folder opens as before.",
        )
    return wanted


def _texts(
    checkpoint: Checkpoint,
    kinds: ModuleKinds | None,
    selection: Selection,
    shards: tuple[ShardPlan, ...],
    output_format: OutputFormat,
) -> dict[str, str]:
    texts: dict[str, str] = {}
    if (checkpoint.folder / INDEX_NAME).exists():
        texts[INDEX_NAME] = index_text(shards)
    if kinds is not None:
        texts["config.json"] = config_text(checkpoint, kinds, selection, output_format)
    is_quantized = any(target.scheme for target in selection.targets.values())
    if output_format == "safetensors" and (is_quantized or kinds is None):
        texts["load.py"] = loader_text()
    return texts


def _check_disk_budget(
    recipe: Recipe,
    folder: Path,
    shards: tuple[ShardPlan, ...],
    texts: dict[str, str],
    side_files: list[Path],
) -> None:
    nbytes = (
        sum(shard.nbytes for shard in shards)
        + sum(len(text.encode()) for text in texts.values())
        + sum((folder / path).stat().st_size for path in side_files)
    )
    budget = recipe.budget.disk
    if budget is not None and nbytes > budget:
        raise Problem(
            "disk_budget_exceeded",
            f"The artifact will have {nbytes} bytes; budget.disk is {budget}.",
            extra={"artifact_bytes": nbytes, "budget_bytes": budget},
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
