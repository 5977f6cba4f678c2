"""Trains a model: opens it, finds what fits into memory, runs the loop, writes what came of it."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
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
from jobs.training import Decision, LossPoint, Training
from jobs.training import Look as LookReport
from training.batches import RowOrder
from training.checkpoints import Checkpoints, Record
from training.loop import Loop, Rows
from training.masks import sparse_parameters
from training.memory import DeviceGauge, HostGauge, fits
from training.opening import open_trainable
from training.optimizers import embedding_names, optimizer_state, state_bytes
from training.rows import Row, RowStore, rows_of
from training.settling import Settler
from training.teaching import taught_rows
from training.trainables import Trainable

_MOST_LOSSES = 200
#: A checkpoint takes time; no more than this share of it, and none sooner than a second.
_SECONDS_BETWEEN_CHECKPOINTS = 1.0
_CHECKPOINT_SHARE = 0.05
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


@dataclass(frozen=True)
class Told:
    """How far a training is.

    Attributes:
        done: Optimizer steps.
        total: Of so many.
        loss: Of the last one.
        rows_per_second: So far.
    """

    done: int
    total: int
    loss: float | None
    rows_per_second: float | None


OnStep = Callable[[Told], None]


def finetune(place: Place, recipe: Recipe, on_step: OnStep) -> Training:
    """Train a model.

    Args:
        place: Where.
        recipe: Has a finetune step, and the budget.
        on_step: Told how far it is, after every step.

    Returns:
        What was measured. The trained model is in `place.output`; scratch is empty.

    Raises:
        Problem: `finetune_unsupported`, `invalid_dataset`, `memory_budget_exceeded`,
            `training_diverged`, `nothing_changed`, `unknown_architecture`.
    """
    started = time.perf_counter()
    step = recipe.finetune_step
    if step is None:
        raise Problem("internal_error", "The recipe has no finetune step.")
    host = HostGauge(recipe.budget.host_memory)
    place.scratch.mkdir(exist_ok=True)
    row_folder = _emptied(place.scratch / "rows")
    taught = _teach(place, step, row_folder) if step.distill else None
    trainable = _open(place.model, place, step)
    gauge = DeviceGauge(recipe.budget.device_memory) if place.device == "cuda" else host
    torch.manual_seed(step.seed)
    parameters = trainable.trained_parameters(step)
    store = taught or RowStore(row_folder, _rows(trainable, place, step))
    with closing(store):
        rows = _split(store, step)
        checkpoints = Checkpoints(place.scratch / "checkpoints", _job(place, recipe))
        settler = Settler(trainable, parameters, step, partial(_longest, trainable, rows), gauge)
        loop = _begin(trainable, step, rows, settler, checkpoints)
        resumed_at = loop.record.steps_done or None
        stopped = _run(loop, checkpoints, gauge.held_bytes, on_step)
    if step.keep_best and loop.record.best is not None:
        checkpoints.read_best(_weights(loop))
    # Before it is written: adapters become part of other weights.
    weights = sum(parameter.numel() for parameter in loop.parameters.values())
    held = sum(int((loop.parameters[name] == 0).sum()) for name in loop.sparse)
    lost = trainable.write(place.output)
    checkpoints.remove()
    _empty(row_folder)
    counted = (weights, held, sum(lost.values()))
    return _report(loop, host, gauge, counted, stopped, resumed_at, started)


def _open(folder: Path, place: Place, step: FinetuneStep) -> Trainable:
    opened: list[Trainable] = []
    if fits(lambda: opened.append(open_trainable(folder, place.dataset, step, place.device))):
        return opened[0]
    raise Problem(
        "memory_budget_exceeded",
        "The model's weights alone, four bytes for each, do not fit. Raise the budget.",
    )


def _rows(trainable: Trainable, place: Place, step: FinetuneStep) -> Iterator[Row]:
    for batch in trainable.batches(place.dataset, step):
        yield from rows_of(batch)


def _teach(place: Place, step: FinetuneStep, folder: Path) -> RowStore:
    """Write the rows down with what the model that came in answers; it is let go afterwards."""
    teacher = _open(place.original, place, step)
    return RowStore(folder, taught_rows(teacher, place.dataset, step))


def _split(store: RowStore, step: FinetuneStep) -> Rows:
    held_out = step.evaluation_rows if step.evaluate_every else 0
    if held_out >= len(store):
        raise Problem(
            "invalid_dataset",
            f"The data set has {len(store)} rows, of which evaluation_rows holds out {held_out}: "
            "none is left to train on.",
        )
    order = RowOrder(len(store) - held_out, step.batch_size, step.seed)
    return Rows(store, held_out, order)


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
    per_epoch = rows.order.steps_per_epoch
    embeddings = embedding_names(trainable.module)
    total = step.steps or max(1, round((step.epochs or 1) * per_epoch))
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
    checkpoints.read(_state(loop))
    return loop


def _run(
    loop: Loop, checkpoints: Checkpoints, held_bytes: Callable[[], int], on_step: OnStep
) -> bool:
    """Do all steps, and say whether it was over early."""
    record, step = loop.record, loop.step
    written = time.monotonic()
    pause = _SECONDS_BETWEEN_CHECKPOINTS
    _tell(loop, on_step)
    while record.steps_done < loop.total:
        if step.evaluate_every and record.steps_done % step.evaluate_every == 0:
            _look(loop, checkpoints)
            if _is_over(loop):
                return True
        loop.advance(held_bytes)
        record.micro_batch_size = loop.setting.micro_batch_size
        _tell(loop, on_step)
        if time.monotonic() - written > pause:
            begun = time.monotonic()
            checkpoints.write(record, _state(loop))
            written = time.monotonic()
            pause = max(_SECONDS_BETWEEN_CHECKPOINTS, (written - begun) / _CHECKPOINT_SHARE)
    if step.evaluate_every:
        _look(loop, checkpoints)
    return False


def _look(loop: Loop, checkpoints: Checkpoints) -> None:
    record = loop.record
    if record.looks and record.looks[-1][0] == record.steps_done:
        return
    loss = loop.look()
    is_best = all(loss < other for _, other in record.looks)
    record.looks.append((record.steps_done, loss))
    if is_best:
        record.best = record.steps_done
        if loop.step.keep_best:
            checkpoints.write_best(_weights(loop))


def _is_over(loop: Loop) -> bool:
    """Tell whether no look was better for as many of them as patience has."""
    losses = [loss for _, loss in loop.record.looks]
    patience = loop.step.patience
    return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience


def _weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in loop.parameters.items()}


def _state(loop: Loop) -> dict[str, torch.Tensor]:
    """Give all that a training goes on from: weights and the optimizer's states."""
    states = optimizer_state(loop.setting.optimizer, loop.parameters)
    return {f"weight/{name}": tensor for name, tensor in _weights(loop).items()} | {
        f"state/{name}": tensor for name, tensor in states.items()
    }


def _tell(loop: Loop, on_step: OnStep) -> None:
    record = loop.record
    speed = record.rows_seen / record.seconds if record.seconds else None
    loss = record.losses[-1][0] if record.losses else None
    on_step(Told(record.steps_done, loop.total, loss, speed))


def _job(place: Place, recipe: Recipe) -> str:
    """Tell a training from others by all that decides what it does."""
    hasher = blake3(f"{ENGINE_VERSION} {torch.__version__} {recipe.model_dump_json()}".encode())
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


def _report(
    loop: Loop,
    host: HostGauge,
    gauge: HostGauge | DeviceGauge,
    counted: tuple[int, int, int],
    stopped: bool,
    resumed_at: int | None,
    started: float,
) -> Training:
    record, step, rows = loop.record, loop.step, loop.rows
    chosen = np.unique(np.linspace(0, len(record.losses) - 1, _MOST_LOSSES).astype(int))
    has_tokens = int(rows.store.tokens.max()) > 1
    seconds = max(record.seconds, 1e-9)
    host.peak_bytes()
    return Training(
        objective=loop.trainable.objective,
        optimizer=step.optimizer,
        method=step.method,
        rows=rows.trained,
        held_out_rows=rows.held_out,
        steps=record.steps_done,
        epochs=record.rows_seen / rows.trained,
        batch_size=step.batch_size,
        micro_batch_size=loop.setting.micro_batch_size,
        savings=loop.setting.savings,
        decisions=loop.setting.decisions,
        trained_parameters=counted[0],
        weights_held_zero=counted[1] + counted[2],
        frozen_statistics=loop.trainable.frozen_statistics,
        losses=tuple(
            LossPoint(step=i + 1, loss=loss, learning_rate=rate, resident_bytes=nbytes)
            for i, (loss, rate, nbytes) in enumerate(record.losses)
            if i in set(chosen.tolist())
        ),
        looks=tuple(LookReport(step=number, loss=loss) for number, loss in record.looks),
        best_step=record.best if step.keep_best else None,
        stopped_early=stopped,
        resumed_at=resumed_at,
        rows_per_second=record.rows_seen / seconds,
        tokens_per_second=record.tokens_seen / seconds if has_tokens else None,
        optimizer_bytes=state_bytes(loop.setting.optimizer),
        resident_peak_bytes=max(
            host.whole_peak_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        ),
        device_peak_bytes=gauge.peak_bytes() if isinstance(gauge, DeviceGauge) else None,
        seconds=time.perf_counter() - started,
    )
