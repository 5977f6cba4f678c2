"""The warm template: a process that has imported everything, forks a runner per job, and waits.

Importing the core and loading its compiled kernels takes most of a second; a fork takes
milliseconds. The template never opens a model, so nothing of one job can reach the next, and it
touches no CUDA, which a fork would not survive. It has no network credentials in its environment.

Between the template and the runner stands an agent, a fork that enters the sandbox of the job: the
first process in there can only be a child of one that has.

Control messages are datagrams on one socket pair: an order comes in with the write end of the
job's pipe and the sandbox, the runner's pid goes out, then its exit status.
"""

import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from engine.memory import resident_bytes
from jobs.parent_death import end_with_parent
from worker.confinement import Bounds, enter, give_up_power, limit
from worker.order import Order
from worker.seccomp import refuse_calls

MAX_ORDER_BYTES = 4 * 1024**2
#: What a runner's libraries read only when they are first used.
_KEPT_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES"}


def serve(control: socket.socket, parent_pid: int, device: str) -> None:
    """Fork a runner for each order until the other end of the socket is closed.

    Args:
        control: The socket pair's end, a SOCK_SEQPACKET.
        parent_pid: The supervisor's process.
        device: Where runners will compute; `cuda` has torch imported ahead.
    """
    end_with_parent(parent_pid)
    from worker.runner import run  # noqa: PLC0415 - after the parent is known to live

    if device == "cuda":
        import torch  # noqa: F401, PLC0415 - warm for the runners; CUDA itself stays untouched
    # What was imported stays for good: keep the collector of every runner from touching those
    # pages, which would copy them.
    gc.freeze()
    _tell(control, {"ready": True, "idle_bytes": _measure_idle()})
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_ORDER_BYTES, 2)
        if not data:
            return
        message = json.loads(data)
        bounds = Bounds(**message["bounds"])
        work = partial(run, Order(**message["order"]), descriptors[0])
        template_pid = os.getpid()
        agent = os.fork()
        if agent == 0:
            _be_agent(control, template_pid, descriptors, bounds, work)
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(agent, 0)
        if status != 0:
            # It could not say how the runner ended, or whether there was one.
            _tell(control, {"exit": os.waitstatus_to_exitcode(status)})


def _measure_idle() -> int:
    """Give the resident memory of a fresh runner, by forking one that only looks at itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(resident_bytes()).encode())
        os._exit(0)
    os.close(writing)
    measured = os.read(reading, 32)
    os.close(reading)
    os.waitpid(pid, 0)
    return int(measured)


def _be_agent(
    control: socket.socket,
    template_pid: int,
    descriptors: list[int],
    bounds: Bounds,
    work: Callable[[], None],
) -> NoReturn:
    code = 1
    try:
        pipe, *sandbox = descriptors
        parent_pid = os.getpid()
        if sandbox:
            enter(sandbox[0])
            os.close(sandbox[0])
            # In there nobody outside has a number.
            parent_pid = 0
        # Entering undid what was asked for before.
        end_with_parent(template_pid)
        runner = os.fork()
        if runner == 0:
            control.close()
            _be_runner(parent_pid, bounds, work)
        os.close(pipe)
        _tell(control, {"pid": runner})
        _, status = os.waitpid(runner, 0)
        _tell(control, {"exit": os.waitstatus_to_exitcode(status)})
        code = 0
    except OSError as error:
        _tell(control, {"refused": str(error)})
        code = 0
    finally:
        os._exit(code)


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


def _be_runner(parent_pid: int, bounds: Bounds, work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        if parent_pid == 0:
            give_up_power()
            refuse_calls()
        # Who leads a session is tied to the agent's life already.
        end_with_parent(parent_pid)
        os.setsid()
        limit(bounds)
        for name in set(os.environ) - _KEPT_ENVIRONMENT:
            del os.environ[name]
        # These are the worker's own log, and whoever holds a descriptor can open its file again.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        work()
        code = 0
    except OSError:
        # It could not be confined, and has done nothing.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No interpreter shutdown: the template's exit handlers are not ours to run.
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
