"""The supervisor's hold on the template and on the runner that works for it."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil

from jobs.problems import Problem
from worker.confinement import Bounds
from worker.descendants import descendants
from worker.order import Order
from worker.sandbox import Sandbox

#: What a runner may inherit: where programs and libraries are, and nothing secret.
_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "NUMBA_CACHE_DIR",
    "CUDA_VISIBLE_DEVICES",
    "COVERAGE_PROCESS_START",
)
_MAX_LINE_BYTES = 256 * 1024


class TemplateDiedError(Exception):
    """The template is gone; the next job starts a new one."""


@dataclass(frozen=True)
class Message:
    """Something that a runner said, or its end.

    Attributes:
        kind: `progress`, `problem`, `done`, `log`, or `exit`.
        value: The message's value; for `exit` the exit code, negative for a signal.
    """

    kind: Literal["progress", "problem", "done", "log", "exit"]
    value: Any


@dataclass(frozen=True)
class Usage:
    """What a runner and what it started hold.

    Attributes:
        processes: How many they are.
        resident_bytes: Their resident memory together.
    """

    processes: int
    resident_bytes: int


class Template:
    """Starts the template process, and runners from it.

    Args:
        device: Where runners compute.
    """

    def __init__(self, device: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Threads of a math library would not survive a fork; the core brings its own.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.template",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    device,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # A Ctrl-C in a terminal is the worker's to hear: it drains, the runner goes on.
                process_group=0,
            )
        self._control = ours
        self._idle_bytes: int | None = None
        self._waiting = threading.Lock()
        self.pid = self._process.pid

    def idle_bytes(self) -> int:
        """Wait until the template is ready, and give the resident memory of a fresh runner.

        Returns:
            The bytes, as a runner measured them of itself.

        Raises:
            TemplateDiedError: There is no template.
        """
        with self._waiting:
            if self._idle_bytes is None:
                self._idle_bytes = int(self._receive()["idle_bytes"])
        return self._idle_bytes

    def start_runner(self, order: Order, bounds: Bounds, sandbox: Sandbox | None) -> "Runner":
        """Fork a runner for an order.

        Args:
            order: The job.
            bounds: What the kernel lets it have.
            sandbox: Where it works, closed with the runner; None for where we are.

        Returns:
            The running runner.

        Raises:
            TemplateDiedError: There is no template to fork from.
            Problem: `sandbox_unavailable`: the sandbox cannot be entered.
        """
        self.idle_bytes()
        reading, writing = os.pipe()
        descriptors = [writing] if sandbox is None else [writing, sandbox.pidfd]
        try:
            message = json.dumps({"order": asdict(order), "bounds": asdict(bounds)}).encode()
            socket.send_fds(self._control, [message], descriptors)
        except OSError as error:
            os.close(reading)
            raise TemplateDiedError(str(error)) from error
        finally:
            os.close(writing)
        try:
            return Runner(self._receive_pid(), reading, self._control, sandbox)
        except (TemplateDiedError, Problem):
            os.close(reading)
            raise

    def stop(self) -> None:
        """End the template; a runner of it dies with it."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _receive_pid(self) -> int:
        answer = self._receive()
        if "refused" in answer:
            detail = f"The sandbox cannot be entered: {answer['refused']}."
            raise Problem("sandbox_unavailable", detail)
        if "pid" not in answer:
            raise TemplateDiedError(f"no runner came to be: {answer}")
        return int(answer["pid"])

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._control.recv(64 * 1024)
        except OSError as error:
            raise TemplateDiedError(str(error)) from error
        if not data:
            raise TemplateDiedError(f"the template exited with {self._process.poll()}")
        members: dict[str, Any] = json.loads(data)
        return members


class Runner:
    """A runner at work.

    Args:
        pid: Its process, which leads its own session.
        pipe: The read end of its pipe.
        control: The template's socket, which tells its exit status.
        sandbox: Where it works; None for where we are.
    """

    def __init__(
        self, pid: int, pipe: int, control: socket.socket, sandbox: Sandbox | None = None
    ) -> None:
        self.pid = pid
        self._sandbox = sandbox
        self._pipe = pipe
        self._control = control
        self._buffer = b""
        self._counted: list[psutil.Process] = []
        self._pipe_is_open = True
        #: False once its exit status was received.
        self.is_running = True

    def messages(self, timeout: float, wake: list[int]) -> Iterator[Message]:
        """Wait for messages and yield those that came.

        Args:
            timeout: How many seconds to wait at most; 0 only looks.
            wake: File descriptors that end the wait when they become readable.

        Yields:
            What the runner said, in order; `exit` is always the last.

        Raises:
            TemplateDiedError: The template died, and the runner with it.
        """
        sources: list[Any] = [self._control, *wake]
        if self._pipe_is_open:
            sources.append(self._pipe)
        readable, _, _ = select.select(sources, [], [], timeout)
        if self._pipe in readable:
            yield from self._read_pipe()
        if self._control in readable:
            # What it left behind may hold the other end of the pipe, and no limit holds any more.
            self._end_the_rest()
            # The exit status is sent after the last line was written: read what is left first.
            os.set_blocking(self._pipe, False)
            with contextlib.suppress(BlockingIOError):
                while self._pipe_is_open:
                    yield from self._read_pipe()
            yield Message("exit", self._exit_code())

    def kill(self) -> int:
        """Kill the runner and everything it started, and wait until it is gone.

        Returns:
            Its exit code, negative for a signal.

        Raises:
            TemplateDiedError: The template died, and the runner with it.
        """
        self._end_the_rest()
        # Between its fork and its setsid() it leads no group yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self._exit_code()

    def usage(self) -> Usage:
        """Count the processes of the runner, itself and what it started, and their memory."""
        # Children whose parent has ended belong to the sandbox's first process.
        holders = () if self._sandbox is None else self._sandbox.own_pids
        found = descendants(self.pid)
        if holders:
            found |= descendants(holders[0])
        self._counted = [found[pid] for pid in found.keys() - set(holders)]
        return Usage(len(self._counted), self.resident_bytes())

    def resident_bytes(self) -> int:
        """Give the memory of those processes that were counted last, which costs little."""
        resident_bytes = 0
        for process in self._counted:
            with contextlib.suppress(psutil.NoSuchProcess):
                resident_bytes += process.memory_info().rss
        return resident_bytes

    def close(self) -> None:
        """Close the pipe, and the sandbox with whatever the runner left in it."""
        os.close(self._pipe)
        if self._sandbox is not None:
            self._sandbox.close()

    def _end_the_rest(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _exit_code(self) -> int:
        try:
            data = self._control.recv(64 * 1024)
        except OSError as error:
            raise TemplateDiedError(str(error)) from error
        if not data:
            raise TemplateDiedError("the template died")
        self.is_running = False
        return int(json.loads(data)["exit"])

    def _read_pipe(self) -> Iterator[Message]:
        data = os.read(self._pipe, 64 * 1024)
        self._pipe_is_open = bool(data)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _MAX_LINE_BYTES:
            raise ValueError("the runner wrote a line without end")
        for line in lines:
            [(kind, value)] = json.loads(line).items()
            yield Message(kind, value)
