"""Writes a transformers folder anew, with other values in the same tensors."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.side_files import copy_side_files
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.safetensors_header import TensorSpec
from planning.layout import ShardPlan
from planning.module_kinds import ModuleKinds
from planning.plan import Plan, make_plan
from training.tensor_files import DTYPES, bytes_of, write_at

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
#: How much is converted and copied at a time.
_PIECE_ELEMENTS = 4 * 1024**2


def write_folder(
    checkpoint: Checkpoint,
    kinds: ModuleKinds,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Write a checkpoint with other values.

    Args:
        checkpoint: As it came in: its names, dtypes, shapes and files are kept.
        kinds: What its own code says about its modules.
        weights: Values by the names of the checkpoint, in any float dtype; what has none is copied.
        folder: Where; what is there of the same name is replaced. Nothing waits for the disk.

    Raises:
        Problem: `training_diverged`: a value is not finite in the dtype of the checkpoint.
    """
    plan = plan_unchanged(checkpoint, kinds)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in plan.shards:
        _write_shard(checkpoint, shard, weights, folder / shard.source.name)
    copy_side_files(checkpoint.folder, folder, plan.side_files)
    for name, text in plan.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def plan_unchanged(checkpoint: Checkpoint, kinds: ModuleKinds | None) -> Plan:
    """Plan an artifact with the tensors of the model, none of them changed in form."""
    return make_plan(checkpoint, kinds, Recipe.model_construct(steps=()))


def _write_shard(
    checkpoint: Checkpoint, shard: ShardPlan, weights: Mapping[str, torch.Tensor], path: Path
) -> None:
    source = checkpoint.folder / shard.source.name
    data_start = shard.source.header.data_start
    with path.open("wb", buffering=0) as file, source.open("rb", buffering=0) as read:
        write_at(file.fileno(), memoryview(shard.header), 0)
        for placement in shard.placements:
            spec = placement.outputs["weight"]
            start = len(shard.header) + spec.start
            values = weights.get(spec.name)
            if values is not None and values.is_floating_point():
                _write_values(file.fileno(), spec, values, start)
            else:
                place = data_start + placement.source.start
                _copy(read.fileno(), place, file.fileno(), start, spec.nbytes)


def _write_values(descriptor: int, spec: TensorSpec, values: torch.Tensor, start: int) -> None:
    dtype = _DTYPES[spec.dtype]
    flat = values.detach().reshape(-1)
    for first in range(0, len(flat), _PIECE_ELEMENTS):
        piece = flat[first : first + _PIECE_ELEMENTS].to(dtype)
        if not bool(torch.isfinite(piece).all()):
            raise Problem(
                "training_diverged",
                f"{spec.name!r} holds a NaN, an infinity or more than {spec.dtype} can. Lower the "
                "learning rate.",
            )
        write_at(descriptor, bytes_of(piece), start)
        start += piece.nbytes


def _copy(source: int, place: int, target: int, start: int, nbytes: int) -> None:
    while nbytes:
        piece = os.pread(source, min(nbytes, _PIECE_ELEMENTS), place)
        if not piece:
            raise Problem("invalid_checkpoint", "A shard ended early.")
        write_at(target, memoryview(piece), start)
        place, start, nbytes = place + len(piece), start + len(piece), nbytes - len(piece)
