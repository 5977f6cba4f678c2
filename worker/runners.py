"""Starts runners: each a fork of the warm template, each in a sandbox of its own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
import structlog

from jobs.problems import Problem
from worker.confinement import Bounds
from worker.inferring import most_answer_bytes
from worker.order import Order
from worker.runner_process import Runner, Template, TemplateDiedError
from worker.sandbox import Level, Place, Sandbox, find_level
from worker.work_files import ANSWERS_NAME, ARTIFACT_NAME

_log = structlog.get_logger(__name__)

#: Threads count too where the kernel counts.
_MOST_THREADS = 256
#: A runner's files beside the weights: its report has a row for each tensor.
_SMALL_FILES_BYTES = 256 * 1024**2
#: Of a 16-bit model: two checkpoints of three float32 for each weight, and the best weights.
_TRAINING_COPIES = 2 * 6 + 4
#: Of a data set's byte: integers of its tokens and what another model answers to each, or what
#: becomes of an image of a few hundred bytes; and of all rows together.
_ROW_BYTES_PER_BYTE, _MOST_ROW_BYTES = 4096, 64 * 1024**3
#: What libraries map and never use, which counts where the kernel limits a process's memory.
_MAPPED_BYTES = 2 * 1024**3


class Runners:
    """The template and the sandboxes of one supervisor.

    Args:
        device: Where runners compute.
        sandbox: The setting: `auto`, `bwrap` or `none`.
        hidden: The data folder, of which a runner sees its own job's part alone.

    Attributes:
        device: Where runners compute.
        level: The level of sandbox in force.

    Raises:
        Problem: `sandbox_unavailable`: `bwrap` is wanted, and does not work.
    """

    device: Literal["cpu", "cuda"]
    level: Level

    def __init__(self, device: Literal["cpu", "cuda"], sandbox: str, hidden: Path) -> None:
        self.device = device
        self.level = find_level(sandbox)
        self._hidden = hidden
        self._template = Template(device)
        _log.info("sandbox", level=self.level)

    @property
    def template_pid(self) -> int:
        """The template's process."""
        return self._template.pid

    def idle_bytes(self) -> int:
        """Give the resident memory of a fresh runner; see `Template.idle_bytes`."""
        return self._template.idle_bytes()

    def stop(self) -> None:
        """End the template; a runner of it dies with it."""
        self._template.stop()

    def start(
        self, order: Order, runtime_seconds: float, host_memory_bytes: int | None = None
    ) -> Runner:
        """Start a runner.

        Args:
            order: What it is to do.
            runtime_seconds: How long it may take; the kernel stops one that computes on all
                processors for longer.
            host_memory_bytes: Its memory budget; the kernel refuses it much more than that, or than
                the machine has.

        Returns:
            The running runner.

        Raises:
            Problem: `sandbox_unavailable`; `runner_died`: no runner could be started.
        """
        bounds = self._bounds(order, runtime_seconds, host_memory_bytes)
        sandbox = self._open_sandbox(order)
        try:
            return self._fork(order, bounds, sandbox)
        except BaseException:
            if sandbox is not None:
                sandbox.close()
            raise

    def _open_sandbox(self, order: Order) -> Sandbox | None:
        if self.level == "none":
            return None
        work = Path(order.work_folder)
        readable = [Path(order.model_folder)]
        if order.task in ("verify", "run_original", "run_artifact"):
            # It is being hashed meanwhile, or was.
            readable.append(Path(order.artifact_folder or work / ARTIFACT_NAME))
        if order.task in ("infer", "recheck"):
            # Where nothing but answers is made there is no artifact yet; who makes them writes.
            shown = (ARTIFACT_NAME, ANSWERS_NAME) if order.task == "recheck" else (ARTIFACT_NAME,)
            readable += [work / name for name in shown if (work / name).exists()]
        if order.original_folder is not None:
            readable.append(Path(order.original_folder))
        if order.task == "finetune" and order.requests_folder is not None:
            readable.append(Path(order.requests_folder))
        if order.dataset is not None:
            readable.append(Path(order.dataset))
        return Sandbox(Place(self._hidden, tuple(readable), work, self.device == "cuda"))

    def _fork(self, order: Order, bounds: Bounds, sandbox: Sandbox | None) -> Runner:
        try:
            return self._template.start_runner(order, bounds, sandbox)
        except TemplateDiedError as error:
            _log.warning("template_restarted", error=str(error))
            self._template.stop()
            self._template = Template(self.device)
        try:
            return self._template.start_runner(order, bounds, sandbox)
        except TemplateDiedError as error:
            raise Problem("runner_died", f"No runner could be started: {error}.") from error

    def _bounds(
        self, order: Order, runtime_seconds: float, host_memory_bytes: int | None
    ) -> Bounds:
        most = host_memory_bytes or psutil.virtual_memory().total
        return Bounds(
            cpu_seconds=int(runtime_seconds * (os.cpu_count() or 1)) + 60,
            file_bytes=most_written_bytes(order),
            memory_bytes=most + _MAPPED_BYTES if self.device == "cpu" else None,
            processes=None if self.level == "none" else _MOST_THREADS,
        )


def most_written_bytes(order: Order) -> int:
    """Give how much the runners of a job may write, which none of its kind needs.

    Args:
        order: Of the job.

    Returns:
        Bytes, of one file and of all together: the artifact's, and what data decided about, which
        is written beside it, twice where it was smoothed before. What training goes on from is
        written twice: weights and two moments in float32; and the rows of its data set, as the
        model takes them. The answers of an infer step come on top.
    """
    copies = 4 if order.recipe.get("calibrate") is not None else 2
    data = most_answer_bytes(order.recipe)
    if order.task == "finetune" and order.dataset is not None:
        copies += _TRAINING_COPIES
        rows = _ROW_BYTES_PER_BYTE * Path(order.dataset).stat().st_size
        data += min(rows, _MOST_ROW_BYTES)
    model = Path(order.model_folder)
    if order.original_folder is not None and not model.exists():
        # What a stage begins with is made by the one before it, and no larger than what came in.
        model = Path(order.original_folder)
    files = (path for path in model.rglob("*") if path.is_file())
    return copies * sum(path.stat().st_size for path in files) + data + _SMALL_FILES_BYTES


def most_kept_bytes(orders: Sequence[Order]) -> int:
    """Give how much the runners of a job may write together.

    Args:
        orders: Of the job, and of all its runners.

    Returns:
        Bytes; of who verifies, none.
    """
    return sum(most_written_bytes(one) for one in orders if one.task != "verify")
