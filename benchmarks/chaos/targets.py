"""Finds what a fault can hit: a job at work, and the processes that work on it.

It asks Redis itself, as a small job is at work for a tenth of a second.
"""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.programs import children
from benchmarks.chaos.stack import Stack
from jobs.job import Job
from jobs.store import JobStore, connect
from jobs.tenants import DEFAULT_TENANT

_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Target:
    """A job at work, and the processes that work on it.

    Attributes:
        job_id: The job.
        rows: How many attempts it has had.
        worker: The consumer, which takes doorbells.
        supervisor: Its pool child.
        template: The supervisor's template.
    """

    job_id: str
    rows: int
    worker: psutil.Process
    supervisor: psutil.Process
    template: psutil.Process


class Targets:
    """Whoever looks for them.

    Args:
        stack: Where.
        ledger: Knows the jobs.
        stop: Set when nothing is to be found any more.

    Attributes:
        asleep: The supervisors that are stopped, by their pid; they are no targets.
    """

    asleep: set[int]

    def __init__(self, stack: Stack, ledger: Ledger, stop: threading.Event) -> None:
        self.asleep = set()
        self._stack = stack
        self._ledger = ledger
        self._stop = stop
        self._supervisors: dict[str, psutil.Process] = {}
        self._store = JobStore(connect(stack.redis_url), DEFAULT_TENANT)

    def aim(self, choice: float) -> Target | None:
        """Find a job at work, whose worker is awake.

        Args:
            choice: Picks among several, in [0, 1).

        Returns:
            The target, or None where nothing is to be found any more.
        """
        chance = random.Random(choice)
        while not self._stop.wait(_LOOK_SECONDS):
            ids = self._ledger.open_ids()
            chance.shuffle(ids)
            for job_id in ids:
                target = self._target(job_id)
                if target is not None and target.supervisor.pid not in self.asleep:
                    return target
        return None

    def is_held(self, target: Target) -> bool:
        """Tell whether a job is still at the attempt that was aimed at."""
        job = self._running(target.job_id)
        return job is not None and len(job.attempts) == target.rows

    def runners(self, choice: float) -> Iterator[int]:
        """Yield the runners at work, by their pids.

        Args:
            choice: Picks the worker that is looked at first, in [0, 1).
        """
        workers = [program.pid for program in self._stack.workers]
        random.Random(choice).shuffle(workers)
        for worker in workers:
            for supervisor in children(worker):
                if supervisor not in self.asleep:
                    # A supervisor's other children hold sandboxes open.
                    for template in filter(_is_template, children(supervisor)):
                        for agent in children(template):
                            yield from children(agent)

    def _target(self, job_id: str) -> Target | None:
        job = self._running(job_id)
        if job is None:
            return None
        try:
            supervisor = self._supervisor(job.attempts[-1].worker)
            worker = supervisor.parent()
            templates = [
                child for child in supervisor.children() if "worker.template" in child.cmdline()
            ]
        except psutil.NoSuchProcess:
            return None
        if worker is None or not templates:
            return None
        if worker.pid not in {program.pid for program in self._stack.workers}:
            return None
        return Target(job_id, len(job.attempts), worker, supervisor, templates[0])

    def _supervisor(self, name: str) -> psutil.Process:
        """Find a supervisor by its name, which holds its pid."""
        if name not in self._supervisors:
            self._supervisors[name] = psutil.Process(int(name.rpartition(":")[2]))
        return self._supervisors[name]

    def _running(self, job_id: str) -> Job | None:
        try:
            job = self._store.get(job_id)
        except RedisError:
            return None
        return job if job and job.state == "running" and job.attempts else None


def _is_template(pid: int) -> bool:
    try:
        return b"worker.template" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
