"""Everything that a run needs: Redis, the service, workers, and what is between them."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.clock import Clock
from benchmarks.chaos.doorbells import Doorbells
from benchmarks.chaos.programs import Program, adopting_orphans
from benchmarks.ports import free_port
from jobs.settings import Settings
from local.processes import redis_command, worker_command

LEASE_SECONDS = 3.0
_QUEUE = "jobs"
_START_SECONDS = 60


@dataclass(frozen=True)
class Stack:
    """Everything that runs.

    Attributes:
        url: The service's root.
        data: The data folder.
        redis_url: Redis itself, without the doorbells' detour.
        redis_folder: Where its append-only file is.
        redis: Its program.
        service: The service's.
        workers: The workers'.
        doorbells: What is between service and Redis.
        clock: What time it is for Redis.
        logs: The folder of all logs.
    """

    url: str
    data: Path
    redis_url: str
    redis_folder: Path
    redis: Program
    service: Program
    workers: tuple[Program, ...]
    doorbells: Doorbells
    clock: Clock
    logs: Path


@contextmanager
def running(folder: Path, workers: int, seed: int) -> Iterator[Stack]:
    """Run Redis, the service and workers while the block runs.

    Args:
        folder: Where data, sockets and logs go; its path is short.
        workers: How many workers.
        seed: Of the doorbells.

    Yields:
        The stack; its service is ready.
    """
    with adopting_orphans(), _running(folder, workers, seed) as stack:
        yield stack


@contextmanager
def _running(folder: Path, workers: int, seed: int) -> Iterator[Stack]:
    data, logs = folder / "data", folder / "logs"
    data.mkdir()
    logs.mkdir()
    settings = Settings(data_dir=data)
    clock = Clock(folder)
    redis = Program("redis", redis_command(settings, folder / "redis"), clock.environment, logs)
    doorbells = Doorbells(folder / "bells.sock", settings.redis_socket, _QUEUE, seed)
    port = free_port()
    shared = {
        "DATA_DIR": str(data),
        "PORT": str(port),
        "QUEUE": _QUEUE,
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "RENEW_SECONDS": "0.5",
        "REAP_SECONDS": "0.5",
    }
    stack = Stack(
        url=f"http://127.0.0.1:{port}",
        data=data,
        redis_url=settings.redis,
        redis_folder=folder / "redis",
        redis=redis,
        service=Program(
            "service",
            [sys.executable, "-m", "service"],
            shared | {"REDIS_URL": f"unix://{folder / 'bells.sock'}"},
            logs,
        ),
        workers=tuple(
            Program(f"worker-{number}", worker_command(), shared, logs)
            for number in range(1, workers + 1)
        ),
        doorbells=doorbells,
        clock=clock,
        logs=logs,
    )
    try:
        wait_until_ready(stack)
        yield stack
    finally:
        for program in (*stack.workers, stack.service, stack.redis):
            program.stop()
        stack.doorbells.stop()
        clock.clean()


def wait_until_ready(stack: Stack) -> None:
    """Wait until the service answers and every worker has announced itself once."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, RedisError):
            ready = httpx.get(f"{stack.url}/readyz", timeout=5).is_success
            with Redis.from_url(stack.redis_url) as client:
                if ready and client.exists("modelpress:levels"):
                    return
        time.sleep(0.1)
    raise TimeoutError(f"the stack was not ready within {_START_SECONDS} s")
