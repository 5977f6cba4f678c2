"""Takes a model through its calibration data, and writes the weights that these decide about."""

import ctypes
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from calibration.adjusting import Adjuster
from engine.inspection import find_module_kinds
from evaluation.faults import blamed_on
from evaluation.inputs import Batch, batches_of
from evaluation.skeletons import Block, Skeleton
from evaluation.walking import Call, walk
from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.problems import Problem
from jobs.quality import Calibration
from jobs.recipe import Recipe
from planning.calibrated_files import CHOSEN, SMOOTHED
from planning.plan import make_plan
from planning.selection import Target

#: `M_MMAP_THRESHOLD` of malloc.h: what is larger is mapped, and unmapped when it is freed.
_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1024**2
#: Told how many blocks are done, and how many there are.
OnBlocks = Callable[[int, int], None]


def calibrate(
    model_folder: Path, dataset: Path, recipe: Recipe, folder: Path, on_blocks: OnBlocks
) -> Calibration:
    """Choose weights with data: each block sees what those before it put out once changed.

    Args:
        model_folder: A transformers folder; it is only read.
        dataset: The uploaded file.
        recipe: Whose calibrated steps.
        folder: Where the weights go, as `planning.calibrated_files` says; empty.
        on_blocks: Told how far it is.

    Returns:
        What was found.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`, `unknown_architecture`; `nothing_changed`:
            no norm could be smoothed.
    """
    started = time.perf_counter()
    _give_memory_back()
    checkpoint = open_checkpoint(model_folder)
    kinds = find_module_kinds(checkpoint)
    if kinds is None or recipe.calibrate is None:
        raise Problem("evaluation_unsupported", "Calibrated steps run transformers folders only.")
    plan = make_plan(checkpoint, kinds, recipe)
    skeleton = Skeleton(checkpoint, kinds, _main_dtype(checkpoint))
    targets = {target.model_module: target for target in plan.selection.targets.values()}
    adjuster = Adjuster(recipe, targets)
    with blamed_on("invalid_dataset", "The data set cannot be read"):
        batches = list(batches_of(skeleton.model, model_folder, dataset, recipe.calibrate))
    if not batches:
        raise Problem("invalid_dataset", "The data set has no rows.")
    writer = _Writer(skeleton, folder)

    def visit(block: Block, calls: Iterable[Call]) -> None:
        held = list(calls)
        writer.write(SMOOTHED, block, adjuster.smooth(block, held))
        writer.write(CHOSEN, block, adjuster.choose(block, held))
        writer.blocks += 1
        on_blocks(writer.blocks, len(skeleton.blocks))

    walk(skeleton, batches, visit)
    _require_all(targets.values(), writer.written[CHOSEN])
    if recipe.rounding is not None and recipe.rounding.smooth and not adjuster.smoothed_norms:
        raise Problem(
            "nothing_changed",
            "smooth found no norm whose outputs go to quantized Linears alone, so it has nothing "
            "to smooth. Leave it out.",
        )
    return Calibration(
        rows=sum(batch.rows for batch in batches),
        tokens=_tokens(batches),
        blocks=writer.blocks,
        smoothed_norms=tuple(adjuster.smoothed_norms),
        error_ratios=adjuster.error_ratios,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=time.perf_counter() - started,
    )


class _Writer:
    """Writes tensors of a block as they are now, into a file for each block."""

    def __init__(self, skeleton: Skeleton, folder: Path) -> None:
        self._skeleton = skeleton
        self._folder = folder
        self.blocks = 0
        self.written: dict[str, set[str]] = {CHOSEN: set(), SMOOTHED: set()}
        for name in (CHOSEN, SMOOTHED):
            (folder / name).mkdir(parents=True)

    def write(self, kind: str, block: Block, names: Iterable[str]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            stored = block.weights[name]
            tensor = self._skeleton.model.get_parameter_or_buffer(name)
            if tensor.dtype != self._skeleton.stored_dtype(stored):
                raise Problem(
                    "unknown_architecture",
                    f"Tensor {stored!r} is stored in another dtype than most of the model, which "
                    "calibrated steps do not take. Exclude its module.",
                )
            tensors[stored] = tensor.contiguous()
        if tensors:
            _save(tensors, self._folder / kind / f"{self.blocks:05}.safetensors")
            self.written[kind] |= tensors.keys()


def _give_memory_back() -> None:
    """Have the C library give every tensor's memory back when that is let go.

    Otherwise it keeps what is smaller than the largest tensor that was ever let go, in a heap that
    has holes, and a process grows by most of a block with each block.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # It says in words what the system said by number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _main_dtype(checkpoint: Checkpoint) -> str:
    elements: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        elements[tensor.dtype] += tensor.elements
    return elements.most_common(1)[0][0]


def _require_all(targets: Iterable[Target], chosen: set[str]) -> None:
    missing = [t.module for t in targets if t.is_calibrated and t.name not in chosen]
    if missing:
        raise Problem(
            "evaluation_failed",
            f"The model ran past {len(missing)} of the modules, such as {missing[0]}: it calls the "
            "blocks that they are in otherwise than by themselves. Exclude them.",
        )


def _tokens(batches: Iterable[Batch]) -> int | None:
    counts = [
        int(batch.mask.sum()) if batch.mask is not None else batch.inputs["input_ids"].numel()
        for batch in batches
        if "input_ids" in batch.inputs
    ]
    return sum(counts) if counts else None
