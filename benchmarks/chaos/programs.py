"""The programs of a run, each started again when it dies, as a process manager would."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.doorbells import Doorbells
from jobs.settings import Settings
from local.processes import redis_command, worker_command

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 3.0
_QUEUE = "jobs"
_START_SECONDS = 60
_END_SECONDS = 40
_PAUSE_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


class Program:
    """A program that is started whenever it does not run.

    Args:
        name: Of its log.
        command: What to run.
        environment: Added to ours.
        logs: The folder of its log.
    """

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], logs: Path
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self._command = command
        self._environment = os.environ | environment
        self._stopping = threading.Event()
        self._may_start = threading.Event()
        self._may_start.set()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Its process, or the one that it had last."""
        return self._process.pid

    def kill(self) -> None:
        """Kill it; what it started is left to itself."""
        self._process.kill()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Kill it, and start it again when the block ends."""
        self._may_start.clear()
        try:
            self._process.kill()
            self._process.wait()
            yield
        finally:
            self._may_start.set()

    def stop(self) -> int:
        """Ask it to end, for good.

        Returns:
            Its exit status.
        """
        self._stopping.set()
        self._process.terminate()
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._thread.join()
        return status

    def _keep(self) -> None:
        while True:
            self._process.wait()
            self._may_start.wait()
            if self._stopping.wait(_PAUSE_SECONDS):
                return
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )


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
    adopt_orphans()
    data, logs = folder / "data", folder / "logs"
    data.mkdir()
    logs.mkdir()
    settings = Settings(data_dir=data)
    redis = Program("redis", redis_command(settings, folder / "redis"), {}, logs)
    doorbells = Doorbells(folder / "bells.sock", settings.redis_socket, _QUEUE, seed)
    port = _free_port()
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
        logs=logs,
    )
    try:
        wait_until_ready(stack)
        yield stack
    finally:
        for program in (*stack.workers, stack.service, stack.redis):
            program.stop()
        stack.doorbells.stop()


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


def adopt_orphans() -> None:
    """Have what a killed process leaves behind become ours, where it can be seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def living(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Give those of some processes that still live after a while; the others are buried.

    Args:
        processes: Which.
        seconds: How long they may take to end.
    """
    deadline = time.monotonic() + seconds
    left = processes
    while True:
        left = [process for process in left if _lives(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lives(process: psutil.Process) -> bool:
    try:
        if not process.is_running():
            return False
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    # Where its parent died before it, it is ours to wait for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
