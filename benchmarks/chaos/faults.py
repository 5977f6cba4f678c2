"""Does to the machine what the plan says, and remembers whom it hit."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.plan import Fault, FaultKind, Plan
from benchmarks.chaos.programs import living
from benchmarks.chaos.recoveries import Hit
from benchmarks.chaos.stack import LEASE_SECONDS, Stack
from benchmarks.chaos.targets import Target, Targets

#: A process that lives this long after what it belongs to was killed is a leak.
_LAST_SECONDS = 5.0
_LOOK_SECONDS = 0.02
#: How long a kill waits for a submit that it is to hit.
_AIM_SECONDS = 10.0


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
    """

    stack: Stack
    plan: Plan
    ledger: Ledger
    done: list[tuple[float, Fault]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)

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
            "clock": self._set_clock,
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Leave off, and wake whoever sleeps."""
        self._stop.set()
        self._thread.join()
        self._aside.shutdown()
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
        while not self._stop.wait(_LOOK_SECONDS):
            # A small job's runner may end before it is hit; there will be others.
            with contextlib.suppress(ProcessLookupError, StopIteration):
                os.kill(next(self._targets.runners(fault.choice)), signal.SIGKILL)
                self._note(fault)
                return

    def _kill(self, fault: Fault, choose: Callable[[Target], psutil.Process]) -> None:
        while (target := self._targets.aim(fault.choice)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = choose(target)
                under_it = victim.children(recursive=True)
                victim.kill()
                self._note(fault)
                if fault.kind != "template":
                    self.hits.append(Hit(target.job_id, time.time(), fault.kind))
                self._aside.submit(self._see_gone, fault, under_it)
                return

    def _see_gone(self, fault: Fault, processes: list[psutil.Process]) -> None:
        for process in living(processes, _LAST_SECONDS):
            self.ledger.complain(f"{process} outlived the {fault.kind} that it belonged to")

    def _kill_redis(self, fault: Fault) -> None:
        with self.stack.redis.away():
            self._note(fault)
            time.sleep(fault.seconds)

    def _wipe(self, fault: Fault) -> None:
        # It may be loading what it had before a kill.
        while not self._stop.wait(_LOOK_SECONDS):
            with contextlib.suppress(RedisError):
                self._redis.flushall()
                self._note(fault)
                return

    def _lose(self, fault: Fault) -> None:
        with self.stack.redis.away():
            shutil.rmtree(self.stack.redis_folder)
            self.stack.redis_folder.mkdir()
            self._note(fault)
            time.sleep(fault.seconds)

    def _put_to_sleep(self, fault: Fault) -> None:
        while (target := self._targets.aim(fault.choice)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.supervisor.send_signal(signal.SIGSTOP)
                if not self._targets.is_held(target):
                    # It had ended the job between the look and the signal.
                    target.supervisor.send_signal(signal.SIGCONT)
                    continue
                self._targets.asleep.add(target.supervisor.pid)
                self._note(fault)
                self.hits.append(Hit(target.job_id, time.time(), fault.kind))
                self._aside.submit(self._wake, target.supervisor, LEASE_SECONDS + fault.seconds)
                return

    def _wake(self, supervisor: psutil.Process, seconds: float) -> None:
        self._stop.wait(seconds)
        try:
            supervisor.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            print(f"{supervisor} was killed in its sleep", flush=True)
        self._targets.asleep.discard(supervisor.pid)

    def _set_clock(self, fault: Fault) -> None:
        self.stack.clock.set(-1 if fault.choice < 0.5 else 1)
        self._note(fault)
        self._aside.submit(self._put_right, LEASE_SECONDS + fault.seconds)

    def _put_right(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self.stack.clock.set(0)

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
