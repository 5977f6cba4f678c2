"""The warm template: a process that has imported everything, forks a runner per job, and waits.

Importing the core and loading its compiled kernels takes most of a second; a fork takes
milliseconds. The template never opens a model, so nothing of one job can reach the next, and it
touches no CUDA, which a fork would not survive. It has no network credentials in its environment.

Control messages are datagrams on one socket pair: an order comes in with the write end of the
job's pipe, the runner's pid goes out, then its exit status.
"""

import gc
import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from engine.memory import resident_bytes
from jobs.parent_death import end_with_parent

MAX_ORDER_BYTES = 4 * 1024**2


def serve(control: socket.socket, parent_pid: int, device: str) -> None:
    """Fork a runner for each order until the other end of the socket is closed.

    Args:
        control: The socket pair's end, a SOCK_SEQPACKET.
        parent_pid: The supervisor's process.
        device: Where runners will compute; `cuda` has torch imported ahead.
    """
    end_with_parent(parent_pid)
    from worker.runner import Order, run  # noqa: PLC0415 - after the parent is known to live

    if device == "cuda":
        import torch  # noqa: F401, PLC0415 - warm for the runners; CUDA itself stays untouched
    # What was imported stays for good: keep the collector of every runner from touching those
    # pages, which would copy them.
    gc.freeze()
    control.send(json.dumps({"ready": True, "idle_bytes": _measure_idle()}).encode())
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_ORDER_BYTES, 1)
        if not data:
            return
        order = Order(**json.loads(data))
        template_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            control.close()
            _be_runner(template_pid, partial(run, order, descriptors[0]))
        os.close(descriptors[0])
        control.send(json.dumps({"pid": pid}).encode())
        _, status = os.waitpid(pid, 0)
        control.send(json.dumps({"exit": os.waitstatus_to_exitcode(status)}).encode())


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


def _be_runner(template_pid: int, work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        # Who leads a session is tied to the template's life already.
        end_with_parent(template_pid)
        os.setsid()
        work()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No interpreter shutdown: the template's exit handlers are not ours to run.
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
