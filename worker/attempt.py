"""One attempt at a job: watch its runners, enforce its limits, say how it ended.

Nothing here decides what an end means for the job; that is `worker.supervisor`.
"""

import contextlib
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from jobs.job import Progress
from jobs.problems import Problem
from worker.collect import MAX_FILES
from worker.lease import Lease
from worker.runner_process import Runner, TemplateDiedError

_LOOK_SECONDS = 1.0
#: A memory budget is looked after more often than the clock.
_MEMORY_LOOK_SECONDS = 0.05
#: The process that asks transformers about a model is one, and its threads are not processes.
MOST_PROCESSES = 64
_BLOCK_BYTES = 512
_MOST_LOGGED = 4000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        kind: `done`: the runner left what it was to make; `failed`: `problem` says why;
            `cancelled`: the client asked for it; `drained`: the worker is being shut down;
            `lost`: the job may be another worker's by now.
        problem: Why it failed.
    """

    kind: Literal["done", "failed", "cancelled", "drained", "lost"]
    problem: Problem | None = None


@dataclass(frozen=True)
class Limits:
    """What an attempt may use.

    Attributes:
        runtime_seconds: Wall clock.
        host_memory_bytes: Resident memory of a runner and what it starts, or None.
        work_folder: Where it writes.
        disk_bytes: How much the files in there may take.
        started: When the attempt began, in the seconds of `time.monotonic`.
    """

    runtime_seconds: float
    host_memory_bytes: int | None
    work_folder: Path
    disk_bytes: int
    started: float = field(default_factory=time.monotonic)


def watch(runner: Runner, lease: Lease, limits: Limits, drain: int | None) -> Outcome:
    """Watch a runner to its end.

    Args:
        runner: Just started; it is gone when this returns.
        lease: The job's lease; its verdict stops the runner.
        limits: What the attempt may use; passing one stops the runner.
        drain: A descriptor that becomes readable when the worker is to shut down.

    Returns:
        How the attempt ended.
    """
    try:
        try:
            outcome = _follow(runner, lease, limits, drain)
        except TemplateDiedError:
            raise
        except Exception:  # noqa: BLE001 - it works on a stranger's bytes and may say anything
            outcome = Outcome("failed", Problem("runner_died", "The runner talked nonsense."))
        if runner.is_running:
            runner.kill()
    except TemplateDiedError as error:
        outcome = Outcome("failed", Problem("runner_died", f"The runner's parent died: {error}."))
    finally:
        runner.close()
    return outcome


def interruption(lease: Lease, drain: int | None) -> Outcome | None:
    """Tell whether something outside of an attempt ends it.

    Args:
        lease: The job's lease.
        drain: A descriptor that becomes readable when the worker is to shut down.

    Returns:
        The outcome that the attempt has then, or None while it may go on.
    """
    verdict = lease.verdict
    if verdict is not None:
        return Outcome(verdict)
    if drain is not None and select.select([drain], [], [], 0)[0]:
        return Outcome("drained", Problem("drained", "The worker was shut down."))
    return None


def _follow(runner: Runner, lease: Lease, limits: Limits, drain: int | None) -> Outcome:
    deadline = limits.started + limits.runtime_seconds
    look = _MEMORY_LOOK_SECONDS if limits.host_memory_bytes else _LOOK_SECONDS
    wake = [lease.fileno()] if drain is None else [lease.fileno(), drain]
    pace = Pace()
    said: Outcome | None = None
    look_at = limits.started
    while True:
        wait = max(0.0, min(look_at, deadline) - time.monotonic())
        for message in runner.messages(wait, wake):
            if message.kind == "progress":
                lease.tell(pace.estimate(Progress(**message.value), time.monotonic()))
            elif message.kind == "done":
                said = Outcome("done")
            elif message.kind == "problem":
                said = Outcome("failed", Problem.from_dict(message.value))
            elif message.kind == "log":
                _log.warning("runner_said", text=str(message.value)[:_MOST_LOGGED])
            else:
                return said or Outcome("failed", _died(message.value))
        stopped = interruption(lease, drain)
        if stopped is not None:
            return stopped
        now = time.monotonic()
        if now < min(look_at, deadline):
            # A look costs milliseconds of a processor that the runner can use, and it says much.
            continue
        problem = _passed_limit(runner, limits, deadline)
        if problem is not None:
            return Outcome("failed", problem)
        look_at = now + look


def _passed_limit(runner: Runner, limits: Limits, deadline: float) -> Problem | None:
    if time.monotonic() > deadline:
        return Problem(
            "runtime_exceeded",
            f"The attempt ran longer than {limits.runtime_seconds:g} s. Raise budget.runtime.",
            extra={"limit_seconds": limits.runtime_seconds},
        )
    usage = runner.usage()
    budget = limits.host_memory_bytes
    if budget is not None and (used := usage.resident_bytes) > budget:
        return Problem(
            "memory_budget_exceeded",
            f"The runner held {used} bytes; the budget is {budget}. Raise budget.host_memory.",
            extra={"resident_bytes": used, "budget_bytes": budget},
        )
    if usage.processes > MOST_PROCESSES:
        return Problem(
            "runner_overreached",
            f"The runner started {usage.processes} processes; {MOST_PROCESSES} are allowed.",
        )
    if (written := _held_bytes(limits.work_folder)) > limits.disk_bytes:
        return Problem(
            "runner_overreached",
            f"The runner wrote {written} bytes; its model allows {limits.disk_bytes}.",
        )
    return None


def _held_bytes(folder: Path) -> int:
    """Count what files take of the disk, or more than any limit where they are too many."""
    total = 0
    for seen, path in enumerate(folder.rglob("*")):
        if seen > MAX_FILES:
            return sys.maxsize
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * _BLOCK_BYTES
    return total


def _died(exit_code: int) -> Problem:
    if exit_code < 0:
        reason = f"was killed by {signal.Signals(-exit_code).name}"
    else:
        reason = f"exited with status {exit_code} without a word"
    return Problem("runner_died", f"The runner {reason}.")


class Pace:
    """Estimates the time left from the last ten reports of progress."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, Progress]] = deque(maxlen=10)

    def estimate(self, progress: Progress, now: float) -> Progress:
        """Add an ETA to a progress.

        Args:
            progress: As the runner told it.
            now: When, in seconds of any steady clock.

        Returns:
            The same with `eta_seconds`, or None in it where the phase has only begun.
        """
        if self._recent and self._recent[-1][1].phase != progress.phase:
            self._recent.clear()
        self._recent.append((now, progress))
        then, first = self._recent[0]
        if progress.done <= first.done:
            return progress
        eta = (progress.total - progress.done) * (now - then) / (progress.done - first.done)
        return progress.model_copy(update={"eta_seconds": round(eta, 2)})
