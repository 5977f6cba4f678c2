"""Finds what a fault can hit: a job at work, and the processes that work on it."""

import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.stack import Stack

_LOOK_SECONDS = 0.02
#: How long a fault waits for something that it can hit.
_AIM_SECONDS = 10.0


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
        self._http = httpx.Client(base_url=stack.url, timeout=5)

    def close(self) -> None:
        """Close the connection to the service."""
        self._http.close()

    def aim(self, choice: float) -> Target | None:
        """Find a job at work, whose worker is awake.

        Args:
            choice: Picks among several, in [0, 1).

        Returns:
            The target, or None where there was none for a while.
        """
        deadline = time.monotonic() + _AIM_SECONDS
        chance = random.Random(choice)
        while time.monotonic() < deadline and not self._stop.is_set():
            ids = self._ledger.open_ids()
            chance.shuffle(ids)
            for job_id in ids:
                target = self._target(job_id)
                if target is not None and target.supervisor.pid not in self.asleep:
                    return target
            time.sleep(_LOOK_SECONDS)
        return None

    def _target(self, job_id: str) -> Target | None:
        job = self.ask(job_id)
        if job is None or job["state"] != "running" or not job["attempts"]:
            return None
        try:
            supervisor = self._supervisor(job["attempts"][-1]["worker"])
            worker = supervisor.parent() if supervisor else None
            templates = [
                child
                for child in (supervisor.children() if supervisor else [])
                if "worker.template" in child.cmdline()
            ]
        except psutil.NoSuchProcess:
            return None
        if supervisor is None or worker is None or not templates:
            return None
        if worker.pid not in {program.pid for program in self._stack.workers}:
            return None
        return Target(job_id, len(job["attempts"]), worker, supervisor, templates[0])

    def _supervisor(self, name: str) -> psutil.Process | None:
        """Find a supervisor by its name, which holds the pid of the first template that it had."""
        if name not in self._supervisors:
            found = psutil.Process(int(name.rpartition(":")[2])).parent()
            if found is None:
                return None
            self._supervisors[name] = found
        return self._supervisors[name]

    def ask(self, job_id: str) -> dict[str, Any] | None:
        """Give a job's document, or None where there is no answer."""
        try:
            answer = self._http.get(f"/jobs/{job_id}")
            return answer.json() if answer.is_success else None
        except (httpx.HTTPError, ValueError):
            return None
