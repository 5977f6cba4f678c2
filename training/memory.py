"""What training holds at its peak, measured, and the cap that it cannot pass.

On a processor the peak is the kernel's high-water mark of resident memory, which is reset before
each measurement; on a GPU it is what torch's allocator reserved.
"""

import gc
import resource
from collections.abc import Callable
from typing import Protocol

import torch

from evaluation.faults import is_out_of_memory
from evaluation.freed_memory import (
    give_back_what_is_kept,
    give_freed_memory_back,
    keep_freed_memory,
)
from evaluation.resident import (
    PeakMeter,
    anonymous_bytes,
    free_bytes,
    level_bytes,
    writable_bytes,
)
from planning.training import RESERVE_BYTES, RESERVE_SHARE, reserve_bytes, training_budget

#: What may be taken of a machine's free memory where no budget says how much.
_FREE_SHARE = 0.8


class OutOfMemory(Exception):  # noqa: N818 - it is expected, and acted upon
    """What was tried does not fit; raised without the frames that hold its tensors."""


class MemoryGauge(Protocol):
    """Measures peaks of one kind of memory.

    Attributes:
        limit_bytes: What peaks are to stay below.
        has_host_beside: Whether there is other memory, which has more room.
    """

    limit_bytes: int
    has_host_beside: bool

    def reset(self) -> None:
        """Forget the peak."""

    def held_bytes(self) -> int:
        """Give what is held now."""

    def peak_bytes(self) -> int:
        """Give the peak since it was reset."""

    def budget_for(self, peak_bytes: int) -> int:
        """Give the smallest budget whose limit is not below a peak."""

    def keep_freed_memory(self) -> None:
        """Have what is let go of kept to be used again, which is faster."""

    def return_freed_memory(self) -> bool:
        """Have what is let go of given back at once, and say whether that is less memory here."""


class HostGauge:
    """Resident memory of this process, which the kernel keeps from growing past a budget.

    Args:
        budget_bytes: The budget; None takes what the machine has free.
        is_capped: Whether the kernel is to refuse more. A GPU's driver reserves addresses without
            end, which count there.

    Attributes:
        limit_bytes: The budget less a reserve.
        has_host_beside: Whether the host's memory is another one.
    """

    limit_bytes: int
    has_host_beside = False

    def __init__(self, budget_bytes: int | None, *, is_capped: bool = True) -> None:
        _start_threads()
        give_freed_memory_back()
        self._capped_bytes = budget_bytes if is_capped else None
        allowed = budget_bytes or level_bytes() + int(_FREE_SHARE * free_bytes())
        self.limit_bytes = allowed - reserve_bytes(allowed)
        self._meter = PeakMeter()
        self._limits_before = resource.getrlimit(resource.RLIMIT_DATA)
        # Of stacks, and more that stays as it is: not of holes that a heap has later on.
        self._untouched_bytes = writable_bytes() - anonymous_bytes()
        if self._capped_bytes is not None:
            self._cap(self._capped_bytes)

    def let_go(self) -> None:
        """Have the kernel refuse no more than it did before: what follows has to be told."""
        resource.setrlimit(resource.RLIMIT_DATA, self._limits_before)

    def tighten(self) -> None:
        """Have the kernel count anew, when libraries and model are in memory: their files too."""
        if self._capped_bytes is not None:
            self._cap(self._capped_bytes - reserve_bytes(self._capped_bytes) // 2)

    def reset(self) -> None:
        """Forget the peak."""
        self._meter.take()

    def held_bytes(self) -> int:
        """Give the resident memory now."""
        return level_bytes()

    def peak_bytes(self) -> int:
        """Give the highest resident memory since it was last asked for or reset."""
        return self._meter.take()

    @property
    def whole_peak_bytes(self) -> int:
        """The highest resident memory since the process began, as far as it was asked for."""
        return self._meter.most_bytes

    def budget_for(self, peak_bytes: int) -> int:
        """Give the smallest budget whose limit is not below a peak."""
        return training_budget(peak_bytes)

    def keep_freed_memory(self) -> None:
        """Have what is let go of kept to be used again, which is faster."""
        keep_freed_memory()

    def return_freed_memory(self) -> bool:
        """Have what is let go of given back at once, which is less memory."""
        give_freed_memory_back()
        self.tighten()
        return True

    def _cap(self, budget_bytes: int) -> None:
        """Have the kernel refuse memory beyond a budget, so that what does not fit fails by itself.

        The kernel counts what a process may write to, touched or not, and no files.
        """
        files = level_bytes() - anonymous_bytes()
        wanted = max(0, budget_bytes - files) + self._untouched_bytes
        _, hard = self._limits_before
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


class DeviceGauge:
    """What torch's allocator reserves on a GPU, which it keeps below a budget.

    Args:
        budget_bytes: The budget; None takes what the device has free.

    Attributes:
        limit_bytes: The budget less a reserve.
        has_host_beside: Whether the host's memory is another one.
    """

    limit_bytes: int
    has_host_beside = True

    def __init__(self, budget_bytes: int | None) -> None:
        free, total = torch.cuda.mem_get_info()
        allowed = min(budget_bytes or free, free)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
        self.limit_bytes = allowed - min(int(RESERVE_SHARE * allowed), RESERVE_BYTES)

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
        return int(peak_bytes / (1 - RESERVE_SHARE)) + 1

    def keep_freed_memory(self) -> None:
        """Do nothing: torch's allocator always does."""

    def return_freed_memory(self) -> bool:
        """Do nothing: torch's allocator gives back what it keeps before memory runs out."""
        return False


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
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        has_fit = False
    else:
        return True
    # Outside of the handler: the traceback holds every tensor of the frames that it went through.
    gc.collect()
    give_back_what_is_kept()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return has_fit


def _start_threads() -> None:
    """Have torch start its threads: where one has no room for its stack, the process ends."""
    # So many that all of them have a part.
    torch.ones(torch.get_num_threads(), 2**17).add_(1)
