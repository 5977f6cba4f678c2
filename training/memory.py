"""What training holds at its peak, measured, and the cap that it cannot pass.

On a processor the peak is the kernel's high-water mark of resident memory, which is reset before
each measurement; on a GPU it is what torch's allocator reserved.
"""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
import torch

#: `M_MMAP_THRESHOLD` of malloc.h: what is larger is mapped, and unmapped when it is freed.
_MMAP_THRESHOLD = -3
_LARGE_BYTES = 256 * 1024
#: Where the kernel is told to forget the high-water mark: 5 resets it (proc(5)).
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
#: What is left of a limit for what no probe sees: libraries' own memory, files that are read.
_RESERVE_BYTES = 24 * 1024**2
_RESERVE_SHARE = 0.02
#: What may be taken of a machine's free memory where no budget says how much.
_FREE_SHARE = 0.8


class OutOfMemory(Exception):  # noqa: N818 - it is expected, and acted upon
    """What was tried does not fit; raised without the frames that hold its tensors."""


class MemoryGauge(Protocol):
    """Measures peaks of one kind of memory.

    Attributes:
        limit_bytes: What peaks are to stay below.
    """

    limit_bytes: int

    def reset(self) -> None:
        """Forget the peak."""

    def held_bytes(self) -> int:
        """Give what is held now."""

    def peak_bytes(self) -> int:
        """Give the peak since it was reset."""

    def budget_for(self, peak_bytes: int) -> int:
        """Give the smallest budget whose limit is not below a peak."""


class HostGauge:
    """Resident memory of this process, which the kernel keeps from growing past a budget.

    Args:
        budget_bytes: The budget; None takes what the machine has free.

    Attributes:
        limit_bytes: The budget less a reserve.
        whole_peak_bytes: The highest mark ever seen.
    """

    limit_bytes: int
    whole_peak_bytes: int

    def __init__(self, budget_bytes: int | None) -> None:
        give_memory_back()
        free = int(_FREE_SHARE * psutil.virtual_memory().available)
        allowed = budget_bytes or _status("VmRSS") + free
        self.limit_bytes = allowed - min(
            _RESERVE_BYTES + int(_RESERVE_SHARE * allowed), allowed // 4
        )
        self.whole_peak_bytes = _status("VmHWM")
        if budget_bytes is not None:
            _cap(budget_bytes)

    def reset(self) -> None:
        """Forget the peak."""
        self.whole_peak_bytes = max(self.whole_peak_bytes, _status("VmHWM"))
        with suppress(OSError):
            _CLEAR_REFS.write_text("5")

    def held_bytes(self) -> int:
        """Give the resident memory now."""
        return _status("VmRSS")

    def peak_bytes(self) -> int:
        """Give the highest resident memory since the last reset."""
        peak = _status("VmHWM")
        self.whole_peak_bytes = max(self.whole_peak_bytes, peak)
        return peak

    def budget_for(self, peak_bytes: int) -> int:
        """Give the smallest budget whose limit is not below a peak."""
        return int((peak_bytes + _RESERVE_BYTES) / (1 - _RESERVE_SHARE)) + 1


class DeviceGauge:
    """What torch's allocator reserves on a GPU, which it keeps below a budget.

    Args:
        budget_bytes: The budget; None takes what the device has free.

    Attributes:
        limit_bytes: The budget less a reserve.
    """

    limit_bytes: int

    def __init__(self, budget_bytes: int | None) -> None:
        free, total = torch.cuda.mem_get_info()
        allowed = min(budget_bytes or free, free)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
        self.limit_bytes = allowed - min(int(_RESERVE_SHARE * allowed), _RESERVE_BYTES)

    def reset(self) -> None:
        """Forget the peak."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def held_bytes(self) -> int:
        """Give what is reserved now."""
        return int(torch.cuda.memory_reserved())

    def peak_bytes(self) -> int:
        """Give the most that was reserved since the last reset."""
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_reserved())

    def budget_for(self, peak_bytes: int) -> int:
        """Give the smallest budget whose limit is not below a peak."""
        return int(peak_bytes / (1 - _RESERVE_SHARE)) + 1


def peak_of(work: Callable[[], None], gauge: MemoryGauge) -> int:
    """Do something, and measure its peak.

    Args:
        work: What is done.
        gauge: Measures.

    Returns:
        The peak in bytes, all that was held before included.

    Raises:
        OutOfMemory: It does not fit. Nothing of it is held any more.
    """
    gauge.reset()
    if not fits(work):
        raise OutOfMemory
    return gauge.peak_bytes()


def fits(work: Callable[[], None]) -> bool:
    """Do something, and say whether memory sufficed; what it held is let go either way."""
    try:
        work()
    except (MemoryError, torch.OutOfMemoryError):
        has_fit = False
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        has_fit = False
    else:
        return True
    # Outside of the handler: the traceback holds every tensor of the frames that it went through.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return has_fit


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that the processor's memory is used up."""
    text = str(error)
    return "not enough memory" in text or "can't allocate memory" in text


def give_memory_back() -> None:
    """Have the C library return the memory of every tensor as soon as that is let go."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def _cap(budget_bytes: int) -> None:
    """Have the kernel refuse memory beyond a budget, so that what does not fit fails by itself.

    The kernel counts what a process may write to, touched or not, and no files; so the limit is
    what is counted now and what resident memory may still grow by.
    """
    room = max(0, budget_bytes - _status("VmRSS"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _status("VmData") + room
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0
