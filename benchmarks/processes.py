"""What the service and its peers cost: CPU seconds and peak memory of their processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.settings import Settings
from local.up import stack


@dataclass(frozen=True)
class Cost:
    """What one operation took.

    Attributes:
        seconds: Wall clock.
        cpu_seconds: User and system time of the servers' processes; the client's is left out.
        nbytes: What it moved.
    """

    seconds: float
    cpu_seconds: float
    nbytes: int

    @property
    def megabytes_per_second(self) -> float:
        """Its speed."""
        return self.nbytes / 1e6 / self.seconds


@dataclass(frozen=True)
class RunningStack:
    """The whole of Modelpress, running.

    Attributes:
        url: The service's root.
        manager: The process that started the others.
    """

    url: str
    manager: psutil.Process

    def service(self) -> list[psutil.Process]:
        """Give the processes of the front door."""
        for program in self.manager.children():
            if program.cmdline()[-2:] == ["-m", "service"]:
                return [program, *program.children(recursive=True)]
        raise LookupError("the service is not running")


@contextmanager
def running_stack(folder: Path) -> Iterator[RunningStack]:
    """Run Redis, the service and a worker, with their data in a folder, for the block."""
    settings = Settings(port=0, data_dir=folder)
    with stack(settings) as (url, manager):
        yield RunningStack(url, psutil.Process(manager.pid))


def measure(operation: Callable[[], object], servers: list[psutil.Process], nbytes: int) -> Cost:
    """Do something and see what it takes.

    Args:
        operation: What to do.
        servers: The processes that do it, which outlive it.
        nbytes: What it moves.

    Returns:
        Its cost.
    """
    before = _cpu_seconds(servers)
    started = time.perf_counter()
    operation()
    seconds = time.perf_counter() - started
    return Cost(seconds, _cpu_seconds(servers) - before, nbytes)


def peak_bytes(process: psutil.Process) -> int:
    """Give the most resident memory that a process ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peak) * 1024


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
