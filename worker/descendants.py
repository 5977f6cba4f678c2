"""The processes that a process started, and those that these started."""

import contextlib
from pathlib import Path

import psutil


def descendants(pid: int) -> dict[int, psutil.Process]:
    """Find a process and all that came of it.

    Asking the kernel for the children of each costs what these processes have of threads, however
    many other processes the machine has; one that is just being started may be missed.

    Args:
        pid: The first of them.

    Returns:
        Those that live, by their pid; none where the first does not.
    """
    found: dict[int, psutil.Process] = {}
    waiting = [pid]
    while waiting:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(waiting.pop())
            found[process.pid] = process
            waiting += _children(process)
    return found


def _children(process: psutil.Process) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task")
    if not (tasks / str(process.pid) / "children").exists():
        # The kernel was built without CONFIG_PROC_CHILDREN, or the process is gone.
        return [child.pid for child in process.children()]
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in tasks.iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children += map(int, (task / "children").read_text().split())
    return children
