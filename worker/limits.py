"""What an attempt may use, and who looks after that."""

import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs.problems import Problem
from worker.collect import MAX_FILES
from worker.runner_process import Runner

_LOOK_SECONDS = 1.0
#: Where there is a memory budget, processes are counted more often, and the memory of those that
#: were counted is looked at between.
_COUNT_SECONDS = 0.25
_MEMORY_LOOK_SECONDS = 0.05
#: The process that asks transformers about a model is one, and its threads are not processes.
_MOST_PROCESSES = 64
_BLOCK_BYTES = 512


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


class Guard:
    """Looks whether a runner passes the limits of its attempt.

    Looks at all of them cost milliseconds of a processor that the runner can use.

    Args:
        runner: Who is looked after.
        limits: What it may use.

    Attributes:
        look_at: When the next look is due, in the seconds of `time.monotonic`.
    """

    look_at: float

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self.look_at = self._all_at = limits.started
        self._runner = runner
        self._limits = limits
        self._deadline = limits.started + limits.runtime_seconds

    def look(self, now: float) -> Problem | None:
        """Look, where that is due.

        Args:
            now: The time.

        Returns:
            What was passed, or None.
        """
        if now < self.look_at:
            return None
        budget = self._limits.host_memory_bytes
        if now < min(self._all_at, self._deadline):
            problem = _passed_budget(self._runner.resident_bytes(), budget)
        else:
            problem = _passed(self._runner, self._limits, self._deadline)
            self._all_at = now + (_COUNT_SECONDS if budget else _LOOK_SECONDS)
        next_look = _MEMORY_LOOK_SECONDS if budget else _LOOK_SECONDS
        self.look_at = min(now + next_look, max(self._deadline, now))
        return problem


def _passed(runner: Runner, limits: Limits, deadline: float) -> Problem | None:
    if time.monotonic() > deadline:
        return Problem(
            "runtime_exceeded",
            f"The attempt ran longer than {limits.runtime_seconds:g} s. Raise budget.runtime.",
            extra={"limit_seconds": limits.runtime_seconds},
        )
    usage = runner.usage()
    problem = _passed_budget(usage.resident_bytes, limits.host_memory_bytes)
    if problem is not None:
        return problem
    if usage.processes > _MOST_PROCESSES:
        return Problem(
            "runner_overreached",
            f"The runner started {usage.processes} processes; {_MOST_PROCESSES} are allowed.",
        )
    if (written := _held_bytes(limits.work_folder)) > limits.disk_bytes:
        return Problem(
            "runner_overreached",
            f"The runner wrote {written} bytes; its model allows {limits.disk_bytes}.",
        )
    return None


def _passed_budget(used: int, budget: int | None) -> Problem | None:
    if budget is None or used <= budget:
        return None
    return Problem(
        "memory_budget_exceeded",
        f"The runner held {used} bytes; the budget is {budget}. Raise budget.host_memory.",
        extra={"resident_bytes": used, "budget_bytes": budget},
    )


def _held_bytes(folder: Path) -> int:
    """Count what files take of the disk, or more than any limit where they are too many."""
    total = 0
    for seen, path in enumerate(folder.rglob("*")):
        if seen > MAX_FILES:
            return sys.maxsize
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * _BLOCK_BYTES
    return total
