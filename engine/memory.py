"""The process's own memory, sampled from the kernel's counters while a job runs."""

import threading
from types import TracebackType
from typing import Self

from jobs.report import HostMemory

_SECONDS_BETWEEN_SAMPLES = 0.01
_FIELDS = ("RssAnon", "RssFile", "RssShmem", "VmRSS", "VmHWM")


class MemoryMeter:
    """Keeps the peaks of resident memory between entering and leaving it as a context.

    A thread samples every 10 ms; `sample` adds one where the code knows that a peak is likely, so
    short peaks are not missed either.

    Attributes:
        idle: The level when the meter was made.
    """

    idle: HostMemory

    def __init__(self) -> None:
        self.idle = _read()
        self._peaks = self.idle
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak(self) -> HostMemory:
        """The peaks so far."""
        return self._peaks

    def sample(self) -> None:
        """Take one sample now."""
        now = _read()
        with self._lock:
            peaks = self._peaks
            self._peaks = HostMemory(
                anonymous_peak_bytes=max(peaks.anonymous_peak_bytes, now.anonymous_peak_bytes),
                file_peak_bytes=max(peaks.file_peak_bytes, now.file_peak_bytes),
                resident_peak_bytes=max(peaks.resident_peak_bytes, now.resident_peak_bytes),
            )

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            self.sample()


def resident_bytes() -> int:
    """Give the resident memory of this process as it is now."""
    return _read_fields()["VmRSS"]


def own_peak_bytes() -> int:
    """Give the largest resident memory that this process ever had."""
    return _read_fields()["VmHWM"]


def _read_fields() -> dict[str, int]:
    fields = dict.fromkeys(_FIELDS, 0)
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in fields:
                fields[name] = int(value.split()[0]) * 1024
    return fields


def _read() -> HostMemory:
    fields = _read_fields()
    return HostMemory(
        anonymous_peak_bytes=fields["RssAnon"],
        file_peak_bytes=fields["RssFile"] + fields["RssShmem"],
        resident_peak_bytes=fields["VmRSS"],
    )
