"""One attempt at a job: watch its runners, enforce its limits, say how it ended.

Nothing here decides what an end means for the job; that is `worker.supervisor`.
"""

import select
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

import structlog

from jobs.job import Progress
from jobs.problems import Problem
from worker.lease import Lease
from worker.limits import Guard, Limits
from worker.runner_process import Runner, TemplateDiedError

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
    guard = Guard(runner, limits)
    wake = [lease.fileno()] if drain is None else [lease.fileno(), drain]
    pace = Pace()
    said: Outcome | None = None
    while True:
        for message in runner.messages(max(0.0, guard.look_at - time.monotonic()), wake):
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
        problem = guard.look(time.monotonic())
        if problem is not None:
            return Outcome("failed", problem)


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
