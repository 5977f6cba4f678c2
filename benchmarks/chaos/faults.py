"""Does to the machine what the plan says, and remembers whom it hit."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.plan import Fault, FaultKind, Plan
from benchmarks.chaos.programs import living
from benchmarks.chaos.stack import LEASE_SECONDS, Stack
from benchmarks.chaos.targets import Target, Targets

#: A process that lives this long after what it belongs to was killed is a leak.
_LAST_SECONDS = 5.0
_LOOK_SECONDS = 0.02
#: How long a kill waits for the moment that it is meant for.
_AIM_SECONDS = 10.0


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
        self._stop = threading.Event()
        self._aside = ThreadPoolExecutor(8, "aside")
        self._targets = Targets(self.stack, self.ledger, self._stop)
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
        self._targets.close()
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

    # What to do.

    def _kill_runner(self, fault: Fault) -> None:
        deadline = time.monotonic() + _AIM_SECONDS
        while time.monotonic() < deadline:
            target = self._targets.aim(fault.choice)
            if target is None:
                return
            # A small job's runner may have ended by now; there will be others.
            with contextlib.suppress(psutil.NoSuchProcess, StopIteration):
                agents = target.template.children()
                next(runner for agent in agents for runner in agent.children()).kill()
                self._note(fault)
                return

    def _kill(self, fault: Fault, choose: Callable[[Target], psutil.Process]) -> None:
        target = self._targets.aim(fault.choice)
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
        # It may be loading what it had before a kill.
        while not self._stop.wait(_LOOK_SECONDS):
            with contextlib.suppress(RedisError):
                self._redis.flushall()
                self._note(fault)
                return

    def _lose(self, fault: Fault) -> None:
        self._settle_recoveries()
        with self.stack.redis.away():
            shutil.rmtree(self.stack.redis_folder)
            self.stack.redis_folder.mkdir()
            self._note(fault)
            time.sleep(fault.seconds)

    def _put_to_sleep(self, fault: Fault) -> None:
        target = self._targets.aim(fault.choice)
        if target is None:
            return
        target.supervisor.send_signal(signal.SIGSTOP)
        self._targets.asleep.add(target.supervisor.pid)
        # It may have ended the job between the look and the signal.
        job = self._targets.ask(target.job_id)
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
        self._targets.asleep.discard(supervisor.pid)

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
            job = self._targets.ask(hit.job_id)
            if job is not None and len(job["attempts"]) > hit.rows:
                taken_up = datetime.fromisoformat(job["attempts"][hit.rows]["started_at"])
                self.recoveries.append(taken_up.timestamp() - hit.at)
                self.hits.remove(hit)
