"""Programs that are started again when they die, as a process manager would."""

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_END_SECONDS = 40
_PAUSE_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36
#: What programs wait for themselves.
_started: set[int] = set()
_starting = threading.Lock()


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
        with self.log.open("ab") as log, _starting:
            process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            _started.add(process.pid)
        return process


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Have what a killed process leaves behind become ours, where it can be seen, for the block.

    The dead among them are buried as init would, or a sandbox would wait for its runner for ever.
    Meanwhile this process starts others as `Program` only, as their ends would be lost to it.

    Yields:
        Nothing.

    Raises:
        OSError: The kernel refused.
    """
    _be_subreaper(is_one=True)
    over = threading.Event()
    thread = threading.Thread(target=_bury, args=(over,), name="bury", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _be_subreaper(is_one=False)


def _be_subreaper(*, is_one: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def living(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Give those of some processes that still live after a while.

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


def children(pid: int) -> list[int]:
    """Give the processes that one has started, by their pids; none where it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _bury(over: threading.Event) -> None:
    while not over.wait(0.05):
        with _starting:
            for pid in children(os.getpid()):
                if pid not in _started:
                    with contextlib.suppress(OSError):
                        os.waitpid(pid, os.WNOHANG)
