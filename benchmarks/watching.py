"""A process that is measured from outside while it works: its time and its memory."""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stopwatch import GO, PIPE

_SECONDS_BETWEEN_SAMPLES = 0.02


@dataclass(frozen=True)
class Watched:
    """What a process took.

    Attributes:
        seconds: Of the work proper; of the whole process, where it tells of no work.
        added_anonymous_bytes: By how much its own anonymous memory grew while it worked.
        anonymous_bytes: Peak of the anonymous memory of it and its children together.
        resident_bytes: The same of all resident memory; what they share counts for each.
        process_seconds: From its start to its end; None of what is no process of its own.
        cpu_seconds: User and system time, of what `seconds` is about, with that of its children.
    """

    seconds: float
    added_anonymous_bytes: int
    anonymous_bytes: int
    resident_bytes: int
    process_seconds: float | None = None
    cpu_seconds: float | None = None


class _Meter:
    """Peaks of the memory of a process and of its children."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._idle = 0
        self._own_peak = 0
        self.anonymous_bytes = 0
        self.resident_bytes = 0

    @property
    def added_anonymous_bytes(self) -> int:
        return max(0, self._own_peak - self._idle)

    def begin(self, idle: int) -> None:
        self._idle = self._own_peak = idle

    def sample(self) -> None:
        memories = [_memory(pid) for pid in _family(self._pid)]
        self._own_peak = max(self._own_peak, memories[0][0])
        anonymous, resident = (sum(values) for values in zip(*memories, strict=True))
        self.anonymous_bytes = max(self.anonymous_bytes, anonymous)
        self.resident_bytes = max(self.resident_bytes, resident)


def watch(
    command: Sequence[str | Path],
    prepare: Callable[[], None] = lambda: None,
    *,
    has_stopwatch: bool = True,
) -> Watched:
    """Run a command and measure it.

    Args:
        command: A program, which may tell of its work through a `Stopwatch`.
        prepare: Called when its work is about to begin.
        has_stopwatch: Whether it tells when that is; else it is when the program starts.

    Returns:
        What it took; memory is sampled fifty times a second.

    Raises:
        RuntimeError: It failed; with the end of what it wrote to standard error.
    """
    reading, writing = os.pipe()
    waiting, going = os.pipe()
    if not has_stopwatch:
        prepare()
    with (
        tempfile.TemporaryFile() as errors,
        os.fdopen(reading, "rb", buffering=0) as messages,
        os.fdopen(going, "wb", buffering=0) as go,
    ):
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(writing, waiting),
            env=os.environ | {PIPE: str(writing), GO: str(waiting)},
        )
        # The pipe ends when the process does, which then is the only one that can write to it.
        os.close(writing)
        os.close(waiting)
        meter = _Meter(process.pid)
        prepared: list[float] = []

        def begin() -> None:
            started = time.perf_counter()
            prepare()
            prepared.append(time.perf_counter() - started)
            go.write(b"!")

        told = _listen(messages.fileno(), meter, begin)
        _, status, usage = os.wait4(process.pid, 0)
        process_seconds = time.perf_counter() - began - sum(prepared)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{said}")
    return Watched(
        seconds=told.get("seconds", process_seconds),
        process_seconds=process_seconds,
        cpu_seconds=told.get("cpu_seconds", usage.ru_utime + usage.ru_stime),
        added_anonymous_bytes=meter.added_anonymous_bytes,
        anonymous_bytes=meter.anonymous_bytes,
        resident_bytes=meter.resident_bytes,
    )


def _listen(pipe: int, meter: _Meter, begin: Callable[[], None]) -> dict[str, float]:
    told: dict[str, float] = {}
    text = b""
    while True:
        meter.sample()
        if not select.select([pipe], [], [], _SECONDS_BETWEEN_SAMPLES)[0]:
            continue
        piece = os.read(pipe, 65536)
        if not piece:
            return told
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            message = json.loads(line)
            told |= message
            if "idle_anonymous_bytes" in message:
                meter.begin(message["idle_anonymous_bytes"])
                begin()


def _family(pid: int) -> list[int]:
    pids = [pid]
    for one in pids:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                pids += map(int, file.read_text().split())
            except OSError:
                continue  # A thread or a process that has just ended has no children left.
    return pids


def _memory(pid: int) -> tuple[int, int]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    anonymous, resident = (
        int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmRSS")
    )
    return anonymous, resident
