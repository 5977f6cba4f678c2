"""Does to the machine what the plan says, and remembers whom it hit."""

import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.plan import Fault, FaultKind, Plan
from benchmarks.chaos.programs import LEASE_SECONDS, Stack, empty_folder, living

#: A process that lives this long after what it belongs to was killed is a leak.
_LAST_SECONDS = 5.0
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


@dataclass(frozen=True)
class Hit:
    """A job whose worker fell silent.

    Attributes:
        job_id: The job.
        rows: How many attempts it had had by then.
        at: When, in seconds since the epoch.
        kind: How.
    """

    job_id: str
    rows: int
    at: float
    kind: FaultKind


@dataclass
class Faults:
    """Whoever carries out the plan.

    Args:
        stack: What is hurt.
        plan: How.
        ledger: Tells how far the jobs are, and is told what leaks.

    Attributes:
        done: The faults that were done, and when.
        hits: The jobs whose workers were killed or put to sleep.
        recoveries: Seconds from a worker's kill to the next claim of its job.
    """

    stack: Stack
    plan: Plan
    ledger: Ledger
    done: list[tuple[float, Fault]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._asleep: set[int] = set()
        self._stop = threading.Event()
        self._aside = ThreadPoolExecutor(8, "aside")
        self._http = httpx.Client(base_url=self.stack.url, timeout=5)
        self._redis = Redis.from_url(self.stack.redis_url)
        self._thread = threading.Thread(target=self._carry_out, name="faults", daemon=True)
        self._ways: dict[FaultKind, Callable[[Fault], None]] = {
            "runner": self._kill_runner,
            "worker": lambda fault: self._kill(fault, lambda target: target.worker),
            "supervisor": lambda fault: self._kill(fault, lambda target: target.supervisor),
            "template": lambda fault: self._kill(fault, lambda target: target.template),
            "redis": self._kill_redis,
            "wipe": self._wipe,
            "loss": self._lose,
            "zombie": self._put_to_sleep,
            "service": self._kill_service,
            "submit": self._kill_service,
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Leave off, wake whoever sleeps, and see how long the killed ones' jobs waited."""
        self._stop.set()
        self._thread.join()
        self._aside.shutdown()
        self._settle_recoveries()
        self._http.close()
        self._redis.close()

    def _carry_out(self) -> None:
        for fault in self.plan.faults:
            while len(self.ledger.ends) < fault.after:
                if self._stop.wait(_LOOK_SECONDS):
                    return
            try:
                self._ways[fault.kind](fault)
            except (psutil.Error, RedisError, OSError) as error:
                print(f"missed {fault}: {error}", flush=True)

    def _note(self, fault: Fault) -> None:
        self.done.append((time.time(), fault))
        print(f"{len(self.ledger.ends):5} ended: {fault}", flush=True)

    # Whom to hit.

    def _aim(self, fault: Fault) -> Target | None:
        """Find a job at work, whose worker is awake."""
        deadline = time.monotonic() + _AIM_SECONDS
        chance = random.Random(fault.choice)
        while time.monotonic() < deadline and not self._stop.is_set():
            ids = self.ledger.open_ids()
            chance.shuffle(ids)
            for job_id in ids:
                target = self._target(job_id)
                if target is not None and target.supervisor.pid not in self._asleep:
                    return target
            time.sleep(_LOOK_SECONDS)
        return None

    def _target(self, job_id: str) -> Target | None:
        job = self._ask(job_id)
        if job is None or job["state"] != "running" or not job["attempts"]:
            return None
        try:
            template = psutil.Process(int(job["attempts"][-1]["worker"].rpartition(":")[2]))
            supervisor = template.parent()
            worker = supervisor.parent() if supervisor else None
        except psutil.NoSuchProcess:
            return None
        if supervisor is None or worker is None:
            return None
        if worker.pid not in {program.pid for program in self.stack.workers}:
            return None
        return Target(job_id, len(job["attempts"]), worker, supervisor, template)

    def _ask(self, job_id: str) -> dict[str, Any] | None:
        try:
            answer = self._http.get(f"/jobs/{job_id}")
            return answer.json() if answer.is_success else None
        except (httpx.HTTPError, ValueError):
            return None

    # What to do.

    def _kill_runner(self, fault: Fault) -> None:
        deadline = time.monotonic() + _AIM_SECONDS
        while time.monotonic() < deadline:
            target = self._aim(fault)
            if target is None:
                return
            runners = [
                runner for agent in target.template.children() for runner in agent.children()
            ]
            if runners:
                runners[0].kill()
                self._note(fault)
                return

    def _kill(self, fault: Fault, choose: Callable[[Target], psutil.Process]) -> None:
        target = self._aim(fault)
        if target is None:
            return
        victim = choose(target)
        under_it = victim.children(recursive=True)
        victim.kill()
        self._note(fault)
        if fault.kind != "template":
            self.hits.append(Hit(target.job_id, target.rows, time.time(), fault.kind))
        self._aside.submit(self._see_gone, fault, under_it)

    def _see_gone(self, fault: Fault, processes: list[psutil.Process]) -> None:
        for process in living(processes, _LAST_SECONDS):
            self.ledger.complain(f"{process} outlived the {fault.kind} that it belonged to")

    def _kill_redis(self, fault: Fault) -> None:
        with self.stack.redis.away():
            self._note(fault)
            time.sleep(fault.seconds)

    def _wipe(self, fault: Fault) -> None:
        self._settle_recoveries()
        self._redis.flushall()
        self._note(fault)

    def _lose(self, fault: Fault) -> None:
        self._settle_recoveries()
        with self.stack.redis.away():
            empty_folder(self.stack.redis_folder)
            self._note(fault)
            time.sleep(fault.seconds)

    def _put_to_sleep(self, fault: Fault) -> None:
        target = self._aim(fault)
        if target is None:
            return
        target.supervisor.send_signal(signal.SIGSTOP)
        self._asleep.add(target.supervisor.pid)
        # It may have ended the job between the look and the signal.
        job = self._ask(target.job_id)
        if job is not None and job["state"] == "running" and len(job["attempts"]) == target.rows:
            self._note(fault)
            self.hits.append(Hit(target.job_id, target.rows, time.time(), fault.kind))
        self._aside.submit(self._wake, target.supervisor, LEASE_SECONDS + fault.seconds)

    def _wake(self, supervisor: psutil.Process, seconds: float) -> None:
        self._stop.wait(seconds)
        try:
            supervisor.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            print(f"{supervisor} was killed in its sleep", flush=True)
        self._asleep.discard(supervisor.pid)

    def _kill_service(self, fault: Fault) -> None:
        deadline = time.monotonic() + _AIM_SECONDS
        while fault.kind == "submit" and not self.ledger.submitting:
            if time.monotonic() > deadline:
                break
            time.sleep(0.0005)
        if fault.choice < 0.5:
            self.stack.service.kill()
        else:
            for child in psutil.Process(self.stack.service.pid).children():
                child.kill()
        self._note(fault)

    # What came of it.

    def _settle_recoveries(self) -> None:
        """Read from the records when the jobs of killed workers were taken up again."""
        for hit in [hit for hit in self.hits if hit.kind != "zombie"]:
            job = self._ask(hit.job_id)
            if job is not None and len(job["attempts"]) > hit.rows:
                taken_up = datetime.fromisoformat(job["attempts"][hit.rows]["started_at"])
                self.recoveries.append(taken_up.timestamp() - hit.at)
                self.hits.remove(hit)
