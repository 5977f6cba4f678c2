"""The same kills on plain Celery: `python -m benchmarks.chaos.plain --seed 1 --jobs 2000`."""

import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from benchmarks.chaos.arguments import read_arguments
from benchmarks.chaos.plan import Fault, Plan, make_plan
from benchmarks.chaos.programs import Program, adopting_orphans, living
from benchmarks.machine import describe_machine
from benchmarks.page import publish, table
from jobs.settings import Settings
from local.processes import redis_command

_WORKER_KILLS = frozenset({"worker", "runner", "supervisor", "template"})
_TASK_SECONDS = 0.05
#: Longer than the time-out of an unacknowledged message and the pauses between looks for one.
_QUIET_SECONDS = 130.0
_LATE_SECONDS = 10.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Tally:
    """What became of the tasks.

    Attributes:
        tasks: How many were sent, each acknowledged by Redis.
        stuck: How many had not been done long after the last kill.
        lost: How many were not done either when all workers had been started again.
        doubled: How many were done more than once.
    """

    tasks: int
    stuck: int
    lost: int
    doubled: int


def main() -> None:
    """Run and publish."""
    arguments = read_arguments("The same kills on plain Celery")
    machine = describe_machine("celery", "redis")
    plan = make_plan(arguments.seed, arguments.jobs)
    with (
        adopting_orphans(),
        tempfile.TemporaryDirectory(prefix="modelpress-plain-", dir="/tmp") as name,
    ):
        tally = run_plain(Path(name), plan, arguments.workers)
    counts = (tally.tasks, tally.stuck, tally.lost, tally.doubled)
    row = ("`acks_late`", *(f"{count:,}" for count in counts))
    text = table(("plain Celery", "tasks", "stuck", "lost", "done more than once"), [row])
    kinds = [fault.kind for fault in plan.faults]
    kills = len([kind for kind in kinds if kind in _WORKER_KILLS])
    done = f"{kills} SIGKILLs of workers and their children, {kinds.count('redis')} of Redis."
    publish(arguments.page, "chaos-plain", f"{machine} {done}\n\n{text}")


def run_plain(folder: Path, plan: Plan, workers: int) -> Tally:
    """Run as many tasks as a plan has jobs, under its kills of workers and Redis.

    Args:
        folder: Where everything lies.
        plan: The faults; wipes, zombies and kills of the service are left out.
        workers: How many workers.

    Returns:
        What became of the tasks.
    """
    done = folder / "done"
    done.touch()
    settings = Settings(data_dir=folder)
    broker = f"redis+socket://{settings.redis_socket}"
    environment = {
        "PLAIN_BROKER": broker,
        "PLAIN_DONE": str(done),
    }
    redis = Program("redis", redis_command(settings, folder / "redis"), {}, folder)
    command = [
        sys.executable, "-m", "celery", "-A", "benchmarks.chaos.plain_app", "worker",
        "--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle",
    ]  # fmt: skip
    crew = [Program(f"plain-{n}", command, environment, folder) for n in range(workers)]
    try:
        _send(broker, len(plan.wishes))
        _hurt(plan, redis, crew, done)
        _wait(done, len(plan.wishes))
        waiting = len(plan.wishes) - len(set(done.read_text().split()))
        # What only waits for workers that hang is not lost: they are started again by hand.
        for worker in crew:
            worker.kill()
        if waiting:
            _wait(done, len(plan.wishes))
    finally:
        for program in (*crew, redis):
            program.stop()
    times = Counter(done.read_text().split())
    return Tally(
        tasks=len(plan.wishes),
        stuck=waiting,
        lost=len(plan.wishes) - len(times),
        doubled=sum(count > 1 for count in times.values()),
    )


def _send(broker: str, tasks: int) -> None:
    with Celery("sender", broker=broker, set_as_current=False) as app:
        for number in range(tasks):
            while True:
                try:
                    app.send_task("plain.work", [number, _TASK_SECONDS], ignore_result=True)
                    break
                except (OperationalError, RedisError, OSError):
                    time.sleep(_LOOK_SECONDS)


def _hurt(plan: Plan, redis: Program, crew: list[Program], done: Path) -> None:
    for fault in plan.faults:
        # Workers that stopped taking tasks do not put off what comes next.
        late_at = time.monotonic() + _LATE_SECONDS
        while _lines(done) < fault.after and time.monotonic() < late_at:
            time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(psutil.Error, OSError):
            _do(fault, redis, random.Random(fault.choice).choice(crew))


def _do(fault: Fault, redis: Program, worker: Program) -> None:
    if fault.kind == "redis":
        with redis.away():
            time.sleep(fault.seconds)
    elif fault.kind == "worker":
        under_it = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        living(under_it, 5)
    elif fault.kind in _WORKER_KILLS:
        # What works on a task here is the pool's child.
        for child in psutil.Process(worker.pid).children():
            child.kill()


def _wait(done: Path, tasks: int) -> None:
    """Wait until every task was done, or none was for a long time."""
    before, quiet_at = -1, 0.0
    while len(set(done.read_text().split())) < tasks:
        if (now := done.stat().st_size) != before:
            before, quiet_at = now, time.monotonic() + _QUIET_SECONDS
        if time.monotonic() > quiet_at:
            return
        time.sleep(1)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


if __name__ == "__main__":
    main()
