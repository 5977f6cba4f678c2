"""Chooses weights with data: each block sees what those before it put out once changed."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from calibration.adjusting import Adjuster
from evaluation.inputs import Batch
from evaluation.skeletons import Block, Skeleton
from evaluation.walking import Call, walk
from jobs.problems import Problem
from planning.calibrated_files import CHOSEN, SMOOTHED
from planning.plan import Plan
from planning.selection import Target


@dataclass(frozen=True)
class Choice:
    """What was found on the way; see `jobs.quality.Calibration`."""

    blocks: int
    smoothed_norms: tuple[str, ...] = ()
    error_ratios: dict[str, float] = field(default_factory=dict)


def choose_weights(
    skeleton: Skeleton,
    batches: Sequence[Batch],
    plan: Plan,
    folder: Path,
    on_blocks: Callable[[int, int], None],
) -> Choice:
    """Choose the weights that data decide about, and write them down.

    Args:
        skeleton: The model, its floats in the dtype of most of its tensors.
        batches: The data.
        plan: What is to be done.
        folder: Where the weights go, as `planning.calibrated_files` says; empty.
        on_blocks: Told how many blocks are done, and how many there are.

    Returns:
        What was found.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`, `unknown_architecture`; `nothing_changed`:
            no norm could be smoothed.
    """
    targets = {target.model_module: target for target in plan.selection.targets.values()}
    adjuster = Adjuster(plan.recipe, targets)
    writer = _Writer(skeleton, folder)

    def visit(block: Block, calls: Iterable[Call]) -> None:
        held = list(calls)
        writer.write(SMOOTHED, block, adjuster.smooth(block, held))
        writer.write(CHOSEN, block, adjuster.choose(block, held))
        writer.blocks += 1
        on_blocks(writer.blocks, len(skeleton.blocks))

    walk(skeleton, batches, visit)
    _require_all(targets.values(), writer.written[CHOSEN])
    rounding = plan.recipe.rounding
    if rounding is not None and rounding.smooth and not adjuster.smoothed_norms:
        raise Problem(
            "nothing_changed",
            "smooth found no norm whose outputs go to quantized Linears alone, so it has nothing "
            "to smooth. Leave it out.",
        )
    return Choice(writer.blocks, tuple(adjuster.smoothed_norms), adjuster.error_ratios)


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


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # It says in words what the system said by number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _require_all(targets: Iterable[Target], chosen: set[str]) -> None:
    missing = [t.module for t in targets if t.is_calibrated and t.name not in chosen]
    if missing:
        raise Problem(
            "evaluation_failed",
            f"The model ran past {len(missing)} of the modules, such as {missing[0]}: it calls the "
            "blocks that they are in otherwise than by themselves. Exclude them.",
        )
