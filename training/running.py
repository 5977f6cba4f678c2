"""Trains a model: opens it, finds what fits into memory, runs the loop, writes what came of it."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3

from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from jobs.recipe import ENGINE_VERSION, Recipe
from jobs.training import Decision, Training
from training.checkpoints import Checkpoints, Record
from training.course import Watcher, run_course, state_of, weights_of
from training.least_memory import foresee_least_bytes
from training.loop import Loop, Rows
from training.masks import sparse_parameters
from training.measuring import measured
from training.memory import DeviceGauge, HostGauge, fits
from training.opening import open_trainable
from training.optimizers import embedding_names
from training.pieces import is_finite
from training.precision import has_bf16
from training.rows import Row, RowStore, rows_of
from training.settling import Settler
from training.splitting import split_rows
from training.teaching import taught_rows
from training.trainables import Trainable

_WEIGHT_SUFFIXES = (".safetensors", ".pt2")


@dataclass(frozen=True)
class Place:
    """Where a training reads and writes.

    Attributes:
        model: The model's folder; it is only read.
        original: The model that came in, before anything was done to it.
        dataset: The uploaded file.
        output: Where the trained model goes; empty.
        scratch: For rows and checkpoints; it outlives a killed attempt.
        device: Where it is trained.
    """

    model: Path
    original: Path
    dataset: Path
    output: Path
    scratch: Path
    device: str


def finetune(
    place: Place, recipe: Recipe, watcher: Watcher, rounding: Recipe | None = None
) -> Training:
    """Train a model.

    Args:
        place: Where.
        recipe: Has a finetune step, and the budget.
        watcher: Told how far it is, and asked whether to go on.
        rounding: Will round what is trained, and the model computes as if that were done; None
            leaves weights as they are.

    Returns:
        What was measured. The trained model is in `place.output`; scratch is empty.

    Raises:
        Problem: `finetune_unsupported`, `invalid_dataset`, `memory_budget_exceeded`,
            `training_diverged`, `nothing_changed`, `non_finite_weight`, `unknown_architecture`.
    """
    host = HostGauge(recipe.budget.host_memory, is_capped=place.device == "cpu")
    try:
        return _train(place, recipe, watcher, rounding, host)
    finally:
        # What went wrong has to be told, and the next step to be begun.
        host.let_go()


def _train(
    place: Place, recipe: Recipe, watcher: Watcher, rounding: Recipe | None, host: HostGauge
) -> Training:
    started = time.perf_counter()
    step = recipe.finetune_step
    if step is None:
        raise Problem("internal_error", "The recipe has no finetune step.")
    place.scratch.mkdir(exist_ok=True)
    row_folder = _emptied(place.scratch / "rows")
    taught = _teach(place, step, row_folder, host) if step.distill else None
    trainable = _open(place.model, place, step, host)
    rounded = trainable.round_as(rounding) if rounding else None
    gauge = DeviceGauge(recipe.budget.device_memory) if place.device == "cuda" else host
    torch.manual_seed(step.seed)
    parameters = trainable.trained_parameters(step)
    _refuse_non_finite(parameters)
    store = taught or RowStore(row_folder, _rows(trainable, place, step), trainable.padding)
    with closing(store):
        rows = split_rows(store, step, trainable)
        checkpoints = Checkpoints(place.scratch / "checkpoints", _job(place, recipe, rounding))
        host.tighten()
        # No more rows are together than there are.
        few = step.model_copy(update={"batch_size": min(step.batch_size, rows.trained)})
        settler = Settler(trainable, parameters, few, partial(_longest, trainable, rows), gauge)
        loop = _begin(trainable, step, rows, settler, checkpoints)
        resumed_at = loop.record.steps_done or None
        stopped = run_course(loop, checkpoints, gauge.held_bytes, watcher)
    if step.keep_best and loop.record.best is not None:
        if loop.record.best == 0:
            raise Problem(
                "nothing_changed",
                "No look at held-out rows had a lower loss than the one before the first step, so "
                "the best weights are those that came in. Lower learning_rate, or train longer.",
            )
        checkpoints.read_best(weights_of(loop))
    # Before it is written: adapters become part of other weights.
    weights = sum(parameter.numel() for parameter in loop.parameters.values())
    held = sum(int((loop.parameters[name] == 0).sum()) for name in loop.sparse)
    lost = trainable.write(place.output)
    checkpoints.remove()
    _empty(row_folder)
    counted = (weights, held, sum(lost.values()))
    training = measured(loop, host, gauge, counted, stopped, resumed_at, started)
    is_bf16 = has_bf16(place.device) if step.bf16 else None
    return training.model_copy(update={"quantize_aware": rounded, "bf16": is_bf16})


def _open(folder: Path, place: Place, step: FinetuneStep, host: HostGauge) -> Trainable:
    opened: list[Trainable] = []
    if fits(lambda: opened.append(open_trainable(folder, place.dataset, step, place.device))):
        return opened[0]
    # Reading the model's headers takes memory too.
    host.let_go()
    smallest = host.budget_for(foresee_least_bytes(folder, step, host.held_bytes()))
    raise Problem(
        "memory_budget_exceeded",
        "The libraries and the model's weights alone, four bytes for each that is trained, do not "
        f"fit. The smallest budget that fits is about {smallest}.",
        extra={"limit_bytes": host.limit_bytes, "smallest_bytes": smallest},
    )


def _rows(trainable: Trainable, place: Place, step: FinetuneStep) -> Iterator[Row]:
    for batch in trainable.batches(place.dataset, step):
        yield from rows_of(batch)


def _teach(place: Place, step: FinetuneStep, folder: Path, host: HostGauge) -> RowStore:
    """Write the rows down with what the model that came in answers; it is let go afterwards."""
    teacher = _open(place.original, place, step, host)
    store = RowStore(folder, taught_rows(teacher, place.dataset, step), teacher.padding)
    del teacher
    # What refers to itself is let go only when it is looked for.
    gc.collect()
    return store


def _refuse_non_finite(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if not is_finite(parameter):
            raise Problem(
                "non_finite_weight",
                f"{name!r} holds a NaN or an infinity, of which nothing can be learned. Mend the "
                "model, or leave its module out (exclude).",
            )


def _longest(trainable: Trainable, rows: Rows, count: int) -> Mapping[str, torch.Tensor]:
    """Give a batch of the longest rows, some of them twice where there are too few."""
    by_length = np.argsort(-rows.store.tokens[: rows.trained], kind="stable")
    chosen = [int(number) for number in np.resize(by_length, count)]
    fields = rows.store.collate(chosen)
    return trainable.masking.hide(fields, chosen, (0,)) if trainable.masking else fields


def _begin(
    trainable: Trainable,
    step: FinetuneStep,
    rows: Rows,
    settler: Settler,
    checkpoints: Checkpoints,
) -> Loop:
    """Begin a training, or go on where an attempt before this one was killed."""
    total = step.steps or max(1, round((step.epochs or 1) * rows.order.steps_per_epoch))
    embeddings = embedding_names(trainable.module)
    found = checkpoints.find()
    if found is None:
        setting = settler.settle()
        record = Record(
            checkpoints.job,
            micro_batch_size=setting.micro_batch_size,
            savings=list(setting.savings),
            decisions=[decision.model_dump() for decision in setting.decisions],
        )
        sparse = tuple(sparse_parameters(setting.parameters, embeddings))
        return Loop(trainable, sparse, step, rows, setting, total, record)
    decisions = tuple(Decision.model_validate(decision) for decision in found.decisions)
    setting = settler.take_up(found.micro_batch_size, tuple(found.savings), decisions)
    # Weights that were pruned are told before training is gone on with, by those of the model.
    sparse = tuple(sparse_parameters(setting.parameters, embeddings))
    loop = Loop(trainable, sparse, step, rows, setting, total, found)
    # They are read into place: the states are those of the optimizer itself.
    checkpoints.read(state_of(loop))
    return loop


def _job(place: Place, recipe: Recipe, rounding: Recipe | None) -> str:
    """Tell a training from others by all that decides what it does."""
    hasher = blake3(f"{ENGINE_VERSION} {torch.__version__} {recipe.model_dump_json()}".encode())
    if rounding is not None:
        hasher.update(rounding.model_dump_json().encode())
    weights = (path for path in place.model.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    for path in sorted(weights):
        status = path.stat()
        hasher.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return hasher.hexdigest()


def _emptied(folder: Path) -> Path:
    _empty(folder)
    folder.mkdir()
    return folder


def _empty(folder: Path) -> None:
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
