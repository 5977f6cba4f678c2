"""Memory that was let go of, given back to the system at once."""

import ctypes
from contextlib import suppress

#: `M_MMAP_THRESHOLD` of malloc.h: what is larger is mapped, and unmapped when it is freed.
_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1024**2


def give_freed_memory_back() -> None:
    """Have the C library give every tensor's memory back when that is let go.

    Otherwise it keeps what is smaller than the largest tensor that was ever let go, in a heap that
    has holes, and a process that goes from block to block grows by most of a block with each.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
