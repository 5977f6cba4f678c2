"""Puts together what was measured of a training, for the report."""

import time

import numpy as np

from jobs.training import Look, LossPoint, Training
from training.course import Stop
from training.loop import Loop
from training.memory import DeviceGauge, HostGauge
from training.optimizers import state_bytes

_MOST_LOSSES = 200


def measured(
    loop: Loop,
    host: HostGauge,
    gauge: HostGauge | DeviceGauge,
    counted: tuple[int, int, int],
    stopped_by: Stop | None,
    resumed_at: int | None,
    started: float,
) -> Training:
    """Put together what was measured of a training.

    Args:
        loop: The training, at its end.
        host: Measured the host's memory.
        gauge: Measured the memory that is limited.
        counted: How many weights were trained, how many of them are zero as they were, and how many
            an adapter would have changed.
        stopped_by: Why it was over early; None where it was not.
        resumed_at: How many steps attempts before had done.
        started: When it began, in the seconds of `time.perf_counter`.

    Returns:
        What the report says.
    """
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
            LossPoint(step=number, loss=loss, learning_rate=rate, resident_bytes=nbytes)
            for i, (number, loss, rate, nbytes) in enumerate(record.losses)
            if i in set(chosen.tolist())
        ),
        looks=tuple(Look(step=number, loss=loss) for number, loss in record.looks),
        best_step=record.best if step.keep_best else None,
        stopped_early=stopped_by is not None,
        stopped_by=stopped_by,
        planned_steps=loop.total,
        resumed_at=resumed_at,
        rows_per_second=record.rows_seen / seconds,
        tokens_per_second=record.tokens_seen / seconds if has_tokens else None,
        optimizer_bytes=state_bytes(loop.setting.optimizer),
        # Not the system's own maximum, which a process takes over from the one that started it.
        resident_peak_bytes=host.whole_peak_bytes,
        device_peak_bytes=gauge.peak_bytes() if isinstance(gauge, DeviceGauge) else None,
        seconds=time.perf_counter() - started,
    )
