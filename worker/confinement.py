"""How a process goes into a sandbox that is open, for good and with no power in there.

The calls are the kernel's own, by ctypes: Python has `setns` from 3.12 on and the others nowhere.
"""

import ctypes
import os
import resource
import sys
from dataclasses import dataclass

#: All kinds of namespaces but time: cgroup, uts, ipc, user, pid, net, and mounts.
_NAMESPACES = (
    0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
)
_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR = 4, 24, 38, 47, 4
_CAPABILITY_VERSION = 0x20080522
_MOST_CAPABILITIES = 64


@dataclass(frozen=True)
class Bounds:
    """What the kernel lets a confined process have.

    Attributes:
        cpu_seconds: Of all its threads together.
        file_bytes: The largest file.
        memory_bytes: Its own memory, which is not that of files; of each of its processes. None
            where a GPU's driver reserves addresses without end.
        processes: Processes and threads of its user in the sandbox, where that is not root; None
            outside of one.
    """

    cpu_seconds: int
    file_bytes: int
    memory_bytes: int | None
    processes: int | None


def enter(pidfd: int) -> None:
    """Enter the namespaces of a process; its processes are seen only by children made from now on.

    Args:
        pidfd: Of the first process in there.

    Raises:
        OSError: The kernel refused.
    """
    _check(_libc().setns(pidfd, _NAMESPACES), "setns")


def give_up_power() -> None:
    """Drop every capability and every way to one, in this process and all that it starts.

    Raises:
        OSError: The kernel refused.
    """
    libc = _libc()
    _check(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    for capability in range(_MOST_CAPABILITIES):
        if libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    _check(libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    # Whose power changed may not look at itself in /proc, where a runner measures its memory.
    _check(libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def limit(bounds: Bounds) -> None:
    """Have the kernel hold this process, and all that it starts, to bounds."""
    for kind, value in (
        (resource.RLIMIT_CPU, bounds.cpu_seconds),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
        (resource.RLIMIT_DATA, bounds.memory_bytes),
        (resource.RLIMIT_NPROC, bounds.processes),
        (resource.RLIMIT_CORE, 0),
    ):
        if value is None:
            continue
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)  # noqa: PLW2901 - no limit can be raised
        resource.setrlimit(kind, (value, value))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call} failed: {os.strerror(error)}")


if __name__ == "__main__":
    # Whether it can be done at all, tried before any job needs it.
    from worker.seccomp import refuse_calls

    enter(int(sys.argv[1]))
    give_up_power()
    refuse_calls()
