"""The course of a training: its steps, its looks at held-out rows, its checkpoints."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from training.checkpoints import Checkpoints
from training.loop import Loop
from training.optimizers import optimizer_state

#: A checkpoint takes time; no more than this share of it, and none sooner than a second.
_SECONDS_BETWEEN_CHECKPOINTS = 1.0
_CHECKPOINT_SHARE = 0.05


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
#: Why a training was over early.
Stop = Literal["patience", "request"]


@dataclass(frozen=True)
class Watcher:
    """Whoever follows a training.

    Attributes:
        on_step: Told how far it is, after every step.
        is_asked_to_stop: Asked after every step whether it is to end there.
    """

    on_step: OnStep
    is_asked_to_stop: Callable[[], bool] = lambda: False


def run_course(
    loop: Loop, checkpoints: Checkpoints, held_bytes: Callable[[], int], watcher: Watcher
) -> Stop | None:
    """Do all steps, but at least one.

    Args:
        loop: The training, at its beginning or where an attempt before this one was.
        checkpoints: Where it is written down how far it is.
        held_bytes: Tells the memory that is held.
        watcher: Told how far it is, and asked whether to go on.

    Returns:
        Why it was over early: looks became no better, or the watcher asked for it. None where all
        steps were done.

    Raises:
        Problem: As `Loop.advance`.
    """
    record, step = loop.record, loop.step
    written = time.monotonic()
    pause = _SECONDS_BETWEEN_CHECKPOINTS
    stopped: Stop | None = None
    _tell(loop, watcher.on_step)
    while record.steps_done < loop.total:
        if step.evaluate_every and record.steps_done % step.evaluate_every == 0:
            _look(loop, checkpoints)
            if _is_over(loop):
                return "patience"
        # What an attempt before this one has trained is enough to keep, too.
        if record.steps_done and watcher.is_asked_to_stop():
            stopped = "request"
            break
        loop.advance(held_bytes)
        record.micro_batch_size = loop.setting.micro_batch_size
        _tell(loop, watcher.on_step)
        if time.monotonic() - written > pause:
            begun = time.monotonic()
            checkpoints.write(record, state_of(loop))
            written = time.monotonic()
            pause = max(_SECONDS_BETWEEN_CHECKPOINTS, (written - begun) / _CHECKPOINT_SHARE)
    if step.evaluate_every:
        _look(loop, checkpoints)
    return stopped


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
            checkpoints.write_best(weights_of(loop))


def _is_over(loop: Loop) -> bool:
    """Tell whether no look was better for as many of them as patience has."""
    losses = [loss for _, loss in loop.record.looks]
    patience = loop.step.patience
    return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience


def weights_of(loop: Loop) -> dict[str, torch.Tensor]:
    """Give what is trained, by name."""
    return {name: parameter.data for name, parameter in loop.parameters.items()}


def state_of(loop: Loop) -> dict[str, torch.Tensor]:
    """Give all that a training goes on from: weights and the optimizer's states."""
    states = optimizer_state(loop.setting.optimizer, loop.parameters)
    return {f"weight/{name}": tensor for name, tensor in weights_of(loop).items()} | {
        f"state/{name}": tensor for name, tensor in states.items()
    }


def _tell(loop: Loop, on_step: OnStep) -> None:
    record = loop.record
    speed = record.rows_seen / record.seconds if record.seconds else None
    loss = record.losses[-1][1] if record.losses else None
    on_step(Told(record.steps_done, loop.total, loss, speed))
