"""The sandbox of one runner: a place without network, secrets or other jobs, made by bubblewrap.

bubblewrap makes the namespaces and mounts and holds them open. The runner is forked from the warm
template, which bubblewrap could not start, and goes in by itself (`worker.confinement`). Killing
the first process in there has the kernel kill all others.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil
import structlog

from jobs.problems import Problem

_log = structlog.get_logger(__name__)

Level = Literal["none", "bwrap"]

#: What a runner may write that is not its work folder: memory, so little of it.
_TMP_BYTES = 64 * 1024**2
#: Our packages that a runner, or the process that it asks about a model, imports.
_PACKAGES = (
    "calibration", "engine", "evaluation", "jobs", "planning", "programs", "training", "worker",
)  # fmt: skip
_SYSTEM_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
#: Says that everything is mounted, then holds it open until the pipe to it closes, as it does when
#: whoever made the sandbox dies: the first process in there ends, and all others with it. (With
#: --die-with-parent, a bubblewrap that is killed half-way leaves a process that waits for ever.)
_HOLD = ("/bin/sh", "-c", "echo; exec cat")


@dataclass(frozen=True)
class Place:
    """What a runner gets to see.

    Attributes:
        hidden: A folder of which it sees nothing but the next ones.
        readable: Folders and files, at their own paths.
        writable: Its one folder.
        has_device: Whether it sees the GPU.
    """

    hidden: Path
    readable: tuple[Path, ...]
    writable: Path
    has_device: bool = False


class Sandbox:
    """A place that is open until `close`, or until this process ends.

    Args:
        place: What is in it.

    Attributes:
        pidfd: Of its first process, whose namespaces a runner enters.
        own_pids: The processes that hold it open. What a runner in there leaves to itself becomes a
            child of the first of them.

    Raises:
        Problem: `sandbox_unavailable`: there is no bubblewrap, or the system does not let it work.
    """

    pidfd: int
    own_pids: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise _unavailable("bubblewrap is not installed")
        # No pipe: a bubblewrap that cannot say something, as whoever asked is dead, ends half-way.
        with os.fdopen(os.memfd_create("info"), "rb") as info:
            self._process = subprocess.Popen(
                [program, "--info-fd", str(info.fileno()), *_arguments(place), "--", *_HOLD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[info.fileno()],
                env={},
            )
            is_ready = self._is_ready()
            info.seek(0)
            first_pid = _first_pid(info.read()) if is_ready else -1
        self.pidfd = _open(first_pid)
        self.own_pids = ()
        if self.pidfd < 0:
            self._process.kill()
            _, errors = self._process.communicate()
            raise _unavailable(errors.decode(errors="replace").strip()[-500:])
        holders = psutil.Process(first_pid).children()
        self.own_pids = (first_pid, *(process.pid for process in holders))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything in it, and wait until it is gone."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            self.pidfd = -1
        self._process.communicate()

    def _is_ready(self) -> bool:
        stdout = self._process.stdout
        return stdout is not None and bool(stdout.readline())


def _first_pid(said: bytes) -> int:
    """Give the process that bubblewrap names; -1 where it came to nothing."""
    try:
        return int(json.loads(said)["child-pid"])
    except ValueError:
        return -1


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except ProcessLookupError:
        return -1


@functools.cache
def find_level(wanted: str) -> Level:
    """Find out which level of sandbox works here, by making one and going in.

    Args:
        wanted: The setting: `auto`, `bwrap` or `none`.

    Returns:
        The level in force.

    Raises:
        Problem: `sandbox_unavailable`: one is wanted, and does not work.
    """
    if wanted == "none":
        return "none"
    try:
        with tempfile.TemporaryDirectory(prefix="modelpress-sandbox-") as name:
            folder = Path(name)
            with Sandbox(Place(folder, (), folder)) as sandbox:
                command = [sys.executable, "-m", "worker.confinement", str(sandbox.pidfd)]
                subprocess.run(
                    command, check=True, capture_output=True, pass_fds=[sandbox.pidfd], timeout=60
                )
    except subprocess.SubprocessError as error:
        problem = _unavailable(f"it cannot be entered: {error}")
    except Problem as error:
        problem = error
    else:
        return "bwrap"
    if wanted == "bwrap":
        raise problem
    _log.warning("no_sandbox", reason=problem.detail)
    return "none"


def _arguments(place: Place) -> Iterator[str]:
    yield from ("--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1")
    yield from ("--new-session", "--clearenv", "--cap-drop", "ALL")
    yield from _kernel(has_device=place.has_device)
    readable = list(_system())
    for path in readable:
        yield from ("--ro-bind", str(path), str(path))
    for link in map(Path, _SYSTEM_LINKS):
        if link.is_symlink():
            yield from ("--symlink", str(link.readlink()), str(link))
        elif link.is_dir():
            yield from ("--ro-bind", str(link), str(link))
    for file in _SYSTEM_FILES:
        yield from ("--ro-bind-try", file, file)
    if any(place.hidden.is_relative_to(path) for path in readable):
        yield from ("--tmpfs", str(place.hidden))
    yield from ("--bind", str(place.writable), str(place.writable))
    for path in place.readable:
        yield from ("--ro-bind", str(path), str(path))
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/")


def _kernel(*, has_device: bool) -> Iterator[str]:
    """Yield what the kernel shows of itself, and the folders that are memory."""
    yield from ("--proc", "/proc", "--dev", "/dev")
    # Root outside owns these whatever it may do in here, and some of them run programs as root.
    for name in ("/proc/sys", "/proc/sysrq-trigger"):
        yield from ("--ro-bind-try", name, name)
    for name in ("/tmp", "/dev/shm"):  # noqa: S108 - the sandbox's own
        yield from ("--size", str(_TMP_BYTES), "--tmpfs", name)
    if has_device:
        yield from ("--ro-bind", "/sys", "/sys")
        for device in sorted(Path("/dev").glob("nvidia*")):
            yield from ("--dev-bind", str(device), str(device))


def _system() -> Iterator[Path]:
    """Yield what Python needs: the system's programs and libraries, itself, and our packages."""
    yield Path("/usr")
    root = Path(__file__).resolve().parent.parent
    seen = {Path("/usr")}
    for path in (
        Path(sys.base_prefix).resolve(),
        Path(sys.prefix),
        *(root / package for package in _PACKAGES),
    ):
        if not any(path.is_relative_to(other) for other in seen):
            seen.add(path)
            yield path


def _unavailable(reason: str) -> Problem:
    return Problem("sandbox_unavailable", f"No sandbox can be made here: {reason}.")
